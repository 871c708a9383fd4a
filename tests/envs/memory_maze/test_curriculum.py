"""Smaller mazes in a curriculum: shares, placement, and what a state saves of them."""

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze.curriculum import (
    point_of_seed,
    size_to_play,
    steps_to_play,
    with_targets,
)
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.registry import evaluation_env

SHARES = {"5x5": 0.3, "7x7": 0.3}


def free_cells(env: MemoryMazeVectorEnv) -> list[int]:
    """The largest extent of each maze's floor, in cells."""
    extents = []
    for walls in env.walls():
        rows, columns = np.nonzero(~walls)
        extents.append(int(max(np.ptp(rows), np.ptp(columns))) + 1)
    return extents


@pytest.mark.parametrize("seed", [0, 12_345, 2**31])
def test_sizes_have_their_shares_among_environments_with_consecutive_seeds(seed: int) -> None:
    config = MemoryMazeConfig(curriculum=SHARES)
    sizes = [
        size_to_play(config, point=point_of_seed(seed + i), num_steps=10**9) for i in range(64)
    ]
    assert abs(sizes.count("5x5") - 0.3 * 64) <= 2
    assert abs(sizes.count("7x7") - 0.3 * 64) <= 2


def test_shares_fall_to_zero_and_no_environment_returns_to_a_smaller_maze() -> None:
    config = MemoryMazeConfig(curriculum=SHARES, curriculum_steps=1_000)
    for seed in range(32):
        sides = [
            SIZES[size_to_play(config, point=point_of_seed(seed), num_steps=steps)].side
            for steps in range(0, 1_001, 50)
        ]
        assert sides == sorted(sides)
        assert sides[-1] == 9


def test_small_mazes_lie_within_walls_and_have_all_spheres() -> None:
    config = MemoryMazeConfig(curriculum=SHARES, textures="procedural")
    env = MemoryMazeVectorEnv(16, config=config, seed=0)
    env.reset()
    for index, extent in enumerate(free_cells(env)):
        size = size_to_play(config, point=point_of_seed(index), num_steps=0)
        assert extent <= SIZES[size].side
    targets = env.motion().targets
    assert targets.shape == (16, 3, 2)
    for index in range(16):
        assert len(np.unique(targets[index], axis=0)) == 3
        for x, y in targets[index]:
            column, row = int(11 / 2 + x / 2), int(11 / 2 - y / 2)
            assert not env.walls()[index, row, column]
    env.close()


@pytest.mark.parametrize("full", ["9x9", "15x15"])
@pytest.mark.parametrize("small", ["5x5", "7x7"])
def test_a_small_maze_has_places_for_the_full_sizes_spheres(small: str, full: str) -> None:
    num_targets = SIZES[full].num_targets
    size = with_targets(SIZES[small], num_targets=num_targets)
    assert size.num_targets == num_targets
    assert size.max_rooms * size.objects_per_room >= num_targets


def test_episodes_of_small_mazes_are_marked_as_practice() -> None:
    config = MemoryMazeConfig(curriculum={"5x5": 0.5}, episode_length=4, textures="procedural")
    env = MemoryMazeVectorEnv(4, config=config, seed=0)
    env.reset()
    actions = np.zeros(4, np.int64)
    infos = [env.step(actions)[4] for _ in range(4)]
    env.close()
    assert all("is_practice" not in info for info in infos[:3])
    expected = [
        size_to_play(config, point=point_of_seed(i), num_steps=0) == "5x5" for i in range(4)
    ]
    assert infos[3]["is_practice"].tolist() == expected
    assert 0 < sum(expected) < 4


def test_episodes_grow_and_shorter_ones_are_marked_as_practice() -> None:
    config = MemoryMazeConfig(
        episode_length=12, curriculum_episode_length=3, curriculum_steps=60, textures="procedural"
    )
    env = MemoryMazeVectorEnv(8, config=config, seed=0)
    env.reset()
    actions = np.zeros(8, np.int64)
    ends: list[list[tuple[int, bool]]] = [[] for _ in range(8)]
    for step in range(1, 120):
        *_, truncated, info = env.step(actions)
        for index in np.flatnonzero(truncated):
            ends[index].append((step, bool(info["is_practice"][index])))
    env.close()
    for times in ends:
        starts = [0, *(step + 1 for step, _ in times)]
        lengths = [end - start for start, (end, _) in zip(starts, times, strict=False)]
        assert lengths[0] == 3
        assert lengths[-1] == 12
        assert [is_practice for _, is_practice in times] == [length < 12 for length in lengths]


def test_a_length_lies_between_the_first_and_one_that_grows_by_equal_factors() -> None:
    config = MemoryMazeConfig(
        episode_length=1_600, curriculum_episode_length=100, curriculum_steps=1_000
    )

    def length(point: float, num_steps: int, phase: float = 0.5) -> int:
        return steps_to_play(config, point=point, phase=phase, num_steps=num_steps)

    assert length(0.9, 0) == 100
    assert length(0.0, 500) == 100
    assert length(0.5, 500) == 200
    assert length(0.999999, 500) == 400
    assert length(0.0, 1_000, phase=0.0) == 1_600
    assert length(0.0, 1_000) == 100
    assert length(0.75, 1_000) == 800
    assert length(0.9, 1_000) == 800  # until the phase
    assert length(0.9, 1_793) == 7
    assert length(0.9, 1_800) == 1_600
    assert steps_to_play(MemoryMazeConfig(), point=0.5, phase=0.5, num_steps=5) == 1_000


def test_episodes_of_the_task_do_not_end_together_after_the_curriculum() -> None:
    config = MemoryMazeConfig(
        episode_length=1_000, curriculum_episode_length=128, curriculum_steps=20_000
    )
    rng, starts = np.random.default_rng(0), []
    for seed in range(256):
        num_steps = 0
        while num_steps < 25_000:
            starts.append((seed, num_steps))
            phase = point_of_seed(seed)
            num_steps += steps_to_play(config, point=rng.random(), phase=phase, num_steps=num_steps)
    last = dict(starts)
    tenths = np.bincount([(25_000 - last[seed]) * 10 // 1_001 for seed in range(256)], minlength=10)
    assert tenths.min() >= 23
    assert tenths.max() <= 29


def test_a_restored_environment_continues_with_the_same_mazes() -> None:
    config = MemoryMazeConfig(
        curriculum=SHARES,
        curriculum_steps=40,
        curriculum_episode_length=3,
        episode_length=8,
        textures="procedural",
    )
    rng = np.random.default_rng(0)
    actions = rng.integers(6, size=(60, 6))
    env = MemoryMazeVectorEnv(6, config=config, seed=3)
    env.reset()
    for action in actions[:20]:
        env.step(action)
    state = env.get_state()
    other = MemoryMazeVectorEnv(6, config=config, seed=77)
    other.set_state(state)
    sizes = set()
    for action in actions[20:]:
        expected, actual = env.step(action), other.step(action)
        np.testing.assert_array_equal(expected[0], actual[0])
        np.testing.assert_array_equal(expected[1], actual[1])
        sizes.add(tuple(env.get_state()["sides"]))
    assert len(sizes) > 1
    assert sizes & {(9,) * 6}
    env.close()
    other.close()


def test_evaluation_plays_the_full_size() -> None:
    config = MemoryMazeConfig(
        size="11x11", curriculum=SHARES, curriculum_steps=9, curriculum_episode_length=8
    )
    assert evaluation_env(config) == MemoryMazeConfig(size="11x11")


@pytest.mark.parametrize(
    ("size", "curriculum"),
    [("9x9", {"9x9": 0.5}), ("9x9", {"4x4": 0.5}), ("9x9", {"5x5": 0.8, "7x7": 0.3}),
     ("9x9", {"5x5": -0.1}), ("5x5", {"7x7": 0.1})],
)  # fmt: skip
def test_an_illegal_curriculum_is_refused(size: str, curriculum: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"env\.curriculum="):
        MemoryMazeConfig(size=size, curriculum=curriculum)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"curriculum_episode_length": 128}, "needs the steps over which episodes grow"),
     ({"curriculum_episode_length": -1, "curriculum_steps": 9}, "must be from 1 to the 1000"),
     ({"curriculum_episode_length": 1_001, "curriculum_steps": 9}, "must be from 1 to the 1000")],
)  # fmt: skip
def test_an_illegal_length_of_the_first_episodes_is_refused(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryMazeConfig(**options)
