from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.layout import FREE, cover_walls
from mtxl_rl.envs.memory_maze.physics import move_walker, new_scratch
from mtxl_rl.envs.memory_maze.spec import ACTIONS, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

GOLDEN = Path(__file__).with_name("golden.npz")
FORWARD, LEFT, RIGHT = (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0)
Motion = tuple[NDArray[np.float64], NDArray[np.float64], int]


def room(side: int, *, pillar: bool = False) -> NDArray[np.uint8]:
    """Wall blocks of a square room, with a wall cell in its middle if asked for."""
    blocks = np.zeros((side + 2, side + 2), np.uint8)
    blocks[1:-1, 1:-1] = FREE
    if pillar:
        blocks[(side + 1) // 2, (side + 1) // 2] = 0
    return blocks


def move(
    blocks: NDArray[np.uint8],
    position: list[float],
    controls: list[tuple[float, float]],
    *,
    velocity: list[float] | None = None,
    targets: list[list[float]] | None = None,
    target_height: float = 0.0,
) -> Motion:
    """Where the walker is after these controls, how fast it is, and the targets it touched."""
    box_of_cell = np.full(blocks.shape, -1, np.int16)
    boxes = np.zeros((blocks.size, 4), np.uint8)
    cover_walls(blocks, box_of_cell, boxes)
    place, speed = np.array(position), np.array(velocity or [0.0] * 5)
    spheres = np.array(targets or np.zeros((0, 2)))
    touched = 0
    for roll, steer in controls:
        touched |= move_walker(
            place,
            speed,
            roll,
            steer,
            50,
            box_of_cell,
            boxes,
            spheres,
            target_height,
            new_scratch(),
        )
    return place, speed, touched


def test_one_step_is_that_of_mujoco_walls_included() -> None:
    golden = np.load(GOLDEN)
    env = MemoryMazeVectorEnv(1, config=MemoryMazeConfig(num_threads=1), seed=7)
    env.reset()
    states, actions = golden["steps_states"], golden["steps_actions"]
    errors = []
    for (position, velocity), (expected, _), action in zip(
        states[:-1], states[1:], actions, strict=True
    ):
        place, speed = position.copy(), velocity.copy()
        move_walker(
            place,
            speed,
            *ACTIONS[action],
            50,
            env._box_of_cell[0],
            env._boxes[0],
            env._targets[0],
            0.0,
            new_scratch(),
        )
        errors.append(np.abs(place - expected)[:4].max())
    # Metres and radians. MuJoCo starts each step from the solution of the last one.
    assert np.median(errors) < 1e-10
    assert np.quantile(errors, 0.99) < 1e-7


def test_a_walker_at_rest_stays() -> None:
    place, speed, _ = move(room(5), [0.3, 0.2, 0.0, 1.0, 0.0], [(0.0, 0.0)] * 20)
    assert np.abs(place[:2] - [0.3, 0.2]).max() < 1e-9
    assert place[3] == pytest.approx(1.0, abs=1e-9)
    assert np.abs(speed).max() < 1e-3


def test_it_rolls_without_slipping_at_two_metres_a_second() -> None:
    place, speed, _ = move(room(15), [-10.0, 0.0, 0.0, 0.0, 0.0], [FORWARD] * 8)
    assert speed[0] == pytest.approx(2.0, abs=0.02)
    assert speed[4] * 0.2 == pytest.approx(speed[0], rel=1e-2)
    assert place[1] == pytest.approx(0.0, abs=1e-9)


def test_left_and_right_mirror_each_other() -> None:
    start = [0.5, 0.0, 0.0, 0.0, 0.0]
    left, _, _ = move(room(5), start, [(-1.0, -1.0)] * 12)
    right, _, _ = move(room(5), start, [(-1.0, 1.0)] * 12)
    np.testing.assert_allclose(left * [1, -1, 1, -1, 1], right, atol=1e-6)
    assert left[3] > 1.0


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_world_turns_the_motion_walls_included(quarter: int) -> None:
    controls = [FORWARD, FORWARD, (-1.0, -1.0), FORWARD, (-1.0, 1.0), FORWARD, LEFT, FORWARD]
    place, _, _ = move(room(5, pillar=True), [1.6, 0.3, 0.0, 3.0, 0.0], controls)
    angle = quarter * np.pi / 2
    c, s = np.cos(angle), np.sin(angle)
    start = [1.6 * c - 0.3 * s, 1.6 * s + 0.3 * c, 0.0, 3.0 + angle, 0.0]
    turned, _, _ = move(room(5, pillar=True), start, controls)
    back = [
        turned[0] * c + turned[1] * s,
        turned[1] * c - turned[0] * s,
        turned[2],
        turned[3] - angle,
    ]
    np.testing.assert_allclose(back, place[:4], atol=1e-5)


@pytest.mark.training
def test_walls_stop_the_ball_at_its_radius() -> None:
    place, _, _ = move(room(3), [0.0, 0.5, 0.0, 0.0, 0.0], [FORWARD] * 20)
    assert 2.78 < place[0] < 2.82  # the wall is at 3 m, the radius 0.2 m
    assert np.isfinite(place).all()


@pytest.mark.training
def test_it_never_leaves_the_floor_or_enters_a_wall() -> None:
    env = MemoryMazeVectorEnv(8, config=MemoryMazeConfig(num_threads=1), seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    actions = rng.integers(1, 6, size=8)
    for _ in range(100):
        actions = np.where(rng.random(8) < 0.2, rng.integers(1, 6, size=8), actions)
        env._advance(env._controls(actions))
        place = env.walkers()
        assert np.abs(place[:, 2]).max() < 0.02
        for index, walls in enumerate(env.walls()):
            rows, columns = np.nonzero(walls)
            x, y = 2.0 * columns - 10, 10 - 2.0 * rows
            dx = np.maximum(np.abs(place[index, 0] - x) - 1, 0)
            dy = np.maximum(np.abs(place[index, 1] - y) - 1, 0)
            assert np.hypot(dx, dy).min() > 0.17


@pytest.mark.parametrize(("distance", "touches"), [(0.77, True), (0.78, False)])
def test_a_sphere_on_the_floor_is_touched_by_the_ball(distance: float, touches: bool) -> None:
    # Centre at 0, ball's at 0.2 m; their radii add up to 0.8 m: sqrt(0.64 - 0.04) = 0.775.
    still = [(0.0, 0.0)]
    _, _, touched = move(room(5), [0.0] * 5, still, targets=[[9.0, 9.0], [0.0, distance]])
    assert touched == (0b10 if touches else 0)


@pytest.mark.parametrize(
    ("ahead", "aside", "touches"),
    [
        (0.0, 0.41, True),
        (0.0, 0.42, False),
        (-0.42, 0.0, False),
        (0.42, 0.0, True),
        (0.45, 0.0, False),
    ],
)
def test_a_floating_sphere_is_touched_by_the_head(
    ahead: float, aside: float, touches: bool
) -> None:
    # The head's top is 0.51 m below the centre: 0.1 + sqrt(0.36 - 0.26) = 0.416; the face juts out.
    target = [[ahead, aside]]
    _, _, touched = move(room(5), [0.0] * 5, [(0.0, 0.0)], targets=target, target_height=1.1)
    assert touched == touches
