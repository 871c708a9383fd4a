"""Environments that Python code passes."""

import gymnasium
import numpy as np

from mtxl_rl.envs.backends.custom_env import CustomEnvConfig
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.tasks.tmaze import TMaze, TMazeConfig
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics


def wrapped() -> EpisodeStatistics:
    vector = TMaze(TMazeConfig(), num_envs=4)
    return make_vector_env(CustomEnvConfig(), num_envs=4, seed=3, custom=vector)


def test_a_vector_that_can_be_saved_continues_from_its_state() -> None:
    env, other = wrapped(), wrapped()
    assert env.supports_state
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.step(rng.integers(2, size=4))
    other.set_state(env.get_state())
    for _ in range(200):
        actions = rng.integers(2, size=4)
        for field, expected in zip(env.step(actions)[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(field, expected)


def test_environments_without_a_state_report_it() -> None:
    env = make_vector_env(
        CustomEnvConfig(), num_envs=2, seed=0, custom=lambda: gymnasium.make("CartPole-v1")
    )
    assert not env.supports_state
