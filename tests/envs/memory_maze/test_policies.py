from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.oracle import Oracle, solve_seconds
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

ORIGINAL_RANDOM = "0000000000000010001000001010000000001000000000001001000100011000"
"""The original's returns under random actions, seeds 0 to 63, as 64 digits, from
`python tests/envs/memory_maze/original_returns.py --episodes 64`."""
PUBLISHED = {"9x9": 34.8, "11x11": 58.0, "13x13": 74.5, "15x15": 87.7}
"""Pasukonis et al. (2023), table 1: "Max"."""


def solved(walls: NDArray[np.bool_], target: tuple[float, float]) -> NDArray[np.float32]:
    side = 4 * len(walls)
    seconds = np.zeros((side, side, 24), np.float32)
    solve_seconds(walls, np.array(target), 0.385, seconds)
    return seconds


def room(side: int) -> NDArray[np.bool_]:
    walls = np.ones((side + 2, side + 2), np.bool_)
    walls[1:-1, 1:-1] = False
    return walls


@pytest.mark.training
def test_the_model_needs_a_second_for_each_cell_ahead_and_turns_first() -> None:
    seconds = solved(room(9), (8.5, 5.5))
    east, north, west = 0, 6, 12
    at_column = seconds[22, 4 * np.array([3, 4, 5]) + 2]
    # Nodes are 0.125 cells from the row's middle; the target is touched 0.385 cells before it.
    np.testing.assert_allclose(at_column[:, east], [4.5, 3.5, 2.5], atol=0.35)
    np.testing.assert_allclose(at_column[:-1, east] - at_column[1:, east], 1.0, atol=0.15)
    assert 0.5 < at_column[0, north] - at_column[0, east] < np.pi / 2 / 1.28
    assert 1.5 < at_column[0, west] - at_column[0, east] < np.pi / 1.28 + 0.3


def test_the_model_goes_around_walls_and_knows_what_it_cannot_reach() -> None:
    walls = room(9)
    walls[1:9, 5] = True
    around = solved(walls, (8.5, 1.5))
    assert around[6, 14].min() > solved(room(9), (8.5, 1.5))[6, 14].min() + 8
    walls[9, 5] = True
    assert (solved(walls, (8.5, 1.5))[4:40, 4:20] == 1e3).all()


@pytest.mark.training
def test_the_oracle_does_the_same_again() -> None:
    config = MemoryMazeConfig(num_threads=1)
    walks = []
    for _ in range(2):
        env, oracle = MemoryMazeVectorEnv(3, config=config, seed=5), Oracle()
        env.reset()
        for _ in range(60):
            env.step(oracle(env))
        walks.append(env.walkers())
    np.testing.assert_array_equal(*walks)


@pytest.mark.training
def test_the_oracle_follows_its_environments_into_new_mazes() -> None:
    config = MemoryMazeConfig(num_threads=2, episode_length=100)
    env, oracle = MemoryMazeVectorEnv(8, config=config, seed=0), Oracle()
    env.reset()
    rewards = [env.step(oracle(env))[1] for _ in range(202)]
    assert np.sum(rewards[:100]) > 16
    assert np.sum(rewards[101:201]) > 16
    env.close()


@pytest.mark.parametrize("options", [{"good_visibility": True}, {"control_freq": 40.0}])
@pytest.mark.training
def test_the_oracle_walks_the_variants(
    options: dict[str, Any], episode_returns: Callable[..., NDArray[np.float64]]
) -> None:
    length = 100 * round(options.get("control_freq", 4.0) / 4)
    config = MemoryMazeConfig(num_threads=1, episode_length=length, **options)
    assert episode_returns(config, "oracle", episodes=4).sum() >= 8


@pytest.mark.training
def test_the_oracle_finds_many_and_random_actions_few(
    episode_returns: Callable[..., NDArray[np.float64]],
) -> None:
    config = MemoryMazeConfig(num_threads=1, episode_length=200)
    oracle = episode_returns(config, "oracle", episodes=16)
    assert oracle.min() >= 1
    assert oracle.mean() > 5
    assert episode_returns(config, "random", episodes=16).mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_oracles_return_is_the_published_maximum(
    size: str, episode_returns: Callable[..., NDArray[np.float64]]
) -> None:
    # 32 episodes of 9x9 have a 95 % interval of 6 %, which is more than the bound.
    returns = episode_returns(MemoryMazeConfig(size=size), "oracle", episodes=64)
    assert returns.mean() > 0.95 * PUBLISHED[size]
    assert returns.mean() < 1.05 * PUBLISHED[size]


@pytest.mark.training
def test_random_actions_are_worth_what_they_are_in_the_original() -> None:
    original_returns = np.array([int(digit) for digit in ORIGINAL_RANDOM])
    count, num_steps = len(original_returns), 1000
    actions = [np.random.default_rng(seed).integers(6, size=num_steps) for seed in range(count)]
    env = MemoryMazeVectorEnv(count, config=MemoryMazeConfig(), seed=0)
    env.reset()
    ours = np.sum([env.step(step)[1] for step in np.transpose(actions)], axis=0)
    env.close()
    # Walks along walls drift apart, so episodes differ; their mean must not.
    assert abs(ours.mean() - original_returns.mean()) < 1.96 * original_returns.std() / count**0.5
    assert (ours == original_returns).mean() > 0.8
