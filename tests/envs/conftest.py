"""What the tests of both mazes share."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.registry import EnvConfig, make_vector_env
from mtxl_rl.play import make_player, play_episodes


@pytest.fixture
def episode_returns() -> Callable[..., NDArray[np.float64]]:
    """A function that plays one episode in each environment, and returns the returns."""
    return _episode_returns


def _episode_returns(
    config: EnvConfig, player: str, *, episodes: int, seed: int = 0, memory_steps: int | None = None
) -> NDArray[np.float64]:
    with closing(make_vector_env(config, num_envs=episodes, seed=seed)) as env:
        act = make_player(env, player, seed=seed, memory_steps=memory_steps)
        played = play_episodes(env, act, episodes=episodes, seed=seed)
    return np.array([episode["return"] for episode in played])
