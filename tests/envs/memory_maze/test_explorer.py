"""The explorer: it uses only what it has seen, finds spheres, and is saved with its environment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.explorer import Explorer
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.threads import rows_between
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.registry import evaluation_env


def make(num_envs: int, **options: Any) -> MemoryMazeVectorEnv:  # noqa: ANN401
    config = MemoryMazeConfig(num_threads=1, textures="procedural", **options)
    env = MemoryMazeVectorEnv(num_envs, config=config, seed=0)
    env.reset()
    return env


def run(kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
    kernel(rows_between(0, len(arguments[0])), *arguments)


def corridor(length: int) -> NDArray[np.bool_]:
    """A corridor of `length` cells in the middle row."""
    walls = np.ones((1, length + 2, length + 2), np.bool_)
    walls[0, length // 2 + 1, 1:-1] = False
    return walls


def walk(
    explorer: Explorer, walls: NDArray[np.bool_], *, x: float, heading: float, step: int
) -> None:
    """Show a corridor from x metres; the sphere is at its right end."""
    end = float(walls.shape[1] - 3)
    explorer.update(
        run,
        position=np.array([[x, 0.0, 0.0, heading, 0.0]]),
        velocity=np.zeros((1, 5)),
        walls=walls,
        targets=np.array([[[end, 0.0]]]),
        current=np.zeros(1, np.int64),
        episode_step=np.array([step]),
    )


def test_it_walks_to_a_sphere_that_it_sees_and_turns_away_from_walls() -> None:
    explorer = Explorer(1, grid=11)
    walk(explorer, corridor(9), x=0.0, heading=0.0, step=0)
    assert explorer.actions[0] == 1
    np.testing.assert_allclose(explorer.memory.goal[0], [9.5, 5.5])
    # 4 cells in moves of a quarter of a cell; a turn on the spot costs its move and turning back.
    np.testing.assert_allclose(explorer.costs[0, 1], 16.0, atol=1e-5)
    other = Explorer(1, grid=11)
    walk(other, corridor(9), x=8.0, heading=0.7 * np.pi, step=0)
    assert other.actions[0] in (2, 3, 4, 5)


def test_progress_is_the_cells_gained_on_the_path() -> None:
    explorer = Explorer(1, grid=11)
    walk(explorer, corridor(9), x=0.0, heading=0.0, step=0)
    assert explorer.progress[0] == 0
    walk(explorer, corridor(9), x=0.5, heading=0.0, step=1)
    np.testing.assert_allclose(explorer.progress[0], 0.25, atol=1e-6)
    walk(explorer, corridor(9), x=0.0, heading=0.0, step=2)
    np.testing.assert_allclose(explorer.progress[0], -0.25, atol=1e-6)


def test_what_was_seen_is_forgotten_after_memory_steps() -> None:
    explorer = Explorer(1, grid=11, memory_steps=2)
    goals = []
    for step in range(4):
        walk(explorer, corridor(9), x=0.0, heading=np.pi * (step > 0), step=step)
        goals.append(explorer.memory.goal[0, 0])
    assert goals[:3] == [9.5] * 3
    assert goals[3] < 9.5


def cells_on_rays(walls: NDArray[np.bool_], position: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The cells of one maze that rays across 80 degrees of view touch, in small steps."""
    touched = np.zeros_like(walls)
    n = len(walls)
    x, y = n / 2 + position[0] / 2, n / 2 - position[1] / 2
    tangents = np.tan(np.radians(40)) * np.linspace(-1, 1, 41)
    for angle in position[3] - np.arctan(tangents):
        for distance in np.arange(0.0, 20.0, 0.02):
            column = int(x + 0.075 * np.cos(position[3]) + distance * np.cos(angle))
            row = int(y - 0.075 * np.sin(position[3]) - distance * np.sin(angle))
            touched[row, column] = True
            if walls[row, column]:
                break
    touched[int(y), int(x)] = True
    return touched


@pytest.mark.parametrize("options", [{}, {"curriculum": {"5x5": 1.0}}])
def test_cells_that_it_has_not_seen_do_not_change_what_it_does(options: dict[str, Any]) -> None:
    env = make(2, **options)
    explorer = Explorer(2, grid=11)
    rng = np.random.default_rng(0)
    touched = np.zeros((2, 11, 11), np.bool_)
    for step in range(40):
        motion = env.motion()
        for b in range(2):
            touched[b] |= cells_on_rays(env.walls()[b], motion.position[b])
        before = [array.copy() for array in explorer.memory]
        env.explore(explorer)
        after = [array.copy() for array in explorer.memory]
        costs, progress = explorer.costs.copy(), explorer.progress.copy()
        # The same step, with other walls and spheres where it has not looked yet.
        seen = explorer.memory.seen_at >= 0
        assert not (seen & ~touched).any()
        walls = np.where(touched, env.walls(), rng.random(seen.shape) < 0.5)
        walls[:, [0, -1]] = walls[:, :, [0, -1]] = True
        targets = motion.targets.copy()
        for b, k in np.ndindex(targets.shape[:2]):
            column, row = int(5.5 + targets[b, k, 0] / 2), int(5.5 - targets[b, k, 1] / 2)
            if not seen[b, row, column]:
                row, column = rng.permutation(np.argwhere(~seen[b]))[0]
                targets[b, k] = (2 * (column - 5), -2 * (row - 5))
        for array, old in zip(explorer.memory, before, strict=True):
            array[:] = old
        explorer.update(
            run,
            position=motion.position,
            velocity=motion.velocity,
            walls=walls,
            targets=targets,
            current=motion.current,
            episode_step=np.full(2, step),
        )
        np.testing.assert_array_equal(explorer.costs, costs)
        np.testing.assert_array_equal(explorer.progress, progress)
        for array, old in zip(explorer.memory, after, strict=True):
            np.testing.assert_array_equal(array, old)
        env.step(explorer.actions.copy())
    env.close()


def test_it_finds_spheres_also_in_small_mazes_and_forgets_at_an_episodes_start() -> None:
    env = make(8, curriculum={"5x5": 0.5}, episode_length=200)
    explorer = Explorer(8, grid=11)
    rewards = []
    for _ in range(402):
        env.explore(explorer)
        rewards.append(env.step(explorer.actions.copy())[1])
    env.close()
    returns = np.array([np.sum(rewards[:200], axis=0), np.sum(rewards[201:401], axis=0)])
    assert (returns.mean(axis=1) > 4).all(), returns


@pytest.mark.training
def test_what_memory_is_worth(episode_returns: Callable[..., NDArray[np.float64]]) -> None:
    config = MemoryMazeConfig(textures="procedural", num_threads=1, episode_length=500)
    means = [
        episode_returns(config, "explorer", episodes=16, memory_steps=steps).mean()
        for steps in (0, 32, None)
    ]
    assert means[0] + 3 < means[1] < means[2] - 2, means


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [("9x9", 27.0), ("15x15", 70.0)])
def test_the_explorers_return(
    size: str, least: float, episode_returns: Callable[..., NDArray[np.float64]]
) -> None:
    config = MemoryMazeConfig(size=size, textures="procedural")
    assert episode_returns(config, "explorer", episodes=48).mean() > least


def test_the_training_reward_adds_progress_and_the_reward_does_not() -> None:
    env = make(8, progress_reward=0.1, episode_length=150)
    explorer = Explorer(8, grid=11)
    env.explore(explorer)
    total = np.zeros(8)
    for _ in range(160):
        _, reward, _, _, info = env.step(explorer.actions.copy())
        env.explore(explorer)
        np.testing.assert_allclose(
            info["training_reward"], reward + np.float32(0.1) * explorer.progress, atol=1e-6
        )
        assert np.isin(reward, [0, 1]).all()
        assert (np.abs(explorer.progress) < 0.5).all()
        total += explorer.progress
    # A path of cells of 2 m at 2 m/s: at most a quarter of a cell a step.
    assert (total > 10).all()
    assert (total < 40).all()
    env.close()


def test_a_restored_environment_continues_with_the_same_training_rewards() -> None:
    env, other = make(4, progress_reward=0.1), make(4, progress_reward=0.1)
    actions = np.random.default_rng(0).integers(6, size=(80, 4))
    for action in actions[:40]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[40:]:
        expected, actual = env.step(action)[4], other.step(action)[4]
        np.testing.assert_array_equal(expected["training_reward"], actual["training_reward"])
    without = make(4)
    without.set_state(env.get_state())
    env.set_state(without.get_state())
    for array in env.get_state()["explorer_seen_at"]:  # type: ignore[union-attr]
        assert (array == env.get_state()["num_steps"][0]).any()  # type: ignore[index]
        assert not ((array >= 0) & (array < 80)).any()
    for each in (env, other, without):
        each.close()


def test_evaluation_has_no_progress_reward() -> None:
    config = MemoryMazeConfig(progress_reward=0.1)
    assert evaluation_env(config) == MemoryMazeConfig()
    env = make(1)
    assert "training_reward" not in env.step(np.zeros(1, np.int64))[4]
    env.close()


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_an_illegal_progress_reward_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"env\.progress_reward="):
        MemoryMazeConfig(progress_reward=value)


def test_an_illegal_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory_steps=-1 must be 0"):
        Explorer(1, grid=11, memory_steps=-1)
    with pytest.raises(ValueError, match="the explorer takes the six actions"):
        make(1, discrete_actions=False).player("explorer")


def test_the_age_of_a_target_is_the_steps_since_it_was_in_view() -> None:
    env = make(2)
    player = env.player("explorer")
    ages, seen = env.target_ages(), 0
    for _ in range(60):
        before = ages
        env.step(player())
        ages = env.target_ages()
        motion = env.motion()
        for b in range(2):
            touched = cells_on_rays(env.walls()[b], motion.position[b])
            column = (5.5 + motion.targets[b, :, 0] / 2).astype(int)
            row = (5.5 - motion.targets[b, :, 1] / 2).astype(int)
            assert touched[row, column][ages[b] == 0].all()
        is_hidden = ages != 0
        expected = np.where(before < 0, -1, before + 1)
        np.testing.assert_array_equal(ages[is_hidden], expected[is_hidden])
        seen += int((~is_hidden).sum())
    assert seen > 0


@pytest.mark.parametrize("teacher", ["explorer", "oracle"])
@pytest.mark.training
def test_a_teacher_reports_what_the_player_would_do(teacher: str) -> None:
    """At every step and reset, past episode ends too."""
    env = make(2, episode_length=20, teacher=teacher)
    player = env.player(teacher)
    _, info = env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(45):
        logits = info["teacher_logits"]
        assert logits.shape == (2, 6)
        assert info["_teacher_logits"].all()
        np.testing.assert_array_equal(logits.argmax(1), player())
        _, _, _, _, info = env.step(rng.integers(6, size=2))


def test_a_teacher_is_for_training_and_for_four_discrete_actions_a_second() -> None:
    assert evaluation_env(MemoryMazeConfig(teacher="explorer")).teacher == ""
    for options, message in [
        ({"teacher": "nobody"}, "env.teacher=nobody is unknown; choose one of"),
        ({"teacher": "oracle", "discrete_actions": False}, "discrete actions"),
        ({"teacher": "oracle", "control_freq": 40.0}, "control_freq=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            MemoryMazeConfig(**options)
