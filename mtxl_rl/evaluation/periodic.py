"""Evaluation while training: new episodes in environments of its own."""

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mtxl_rl.agent import Agent
from mtxl_rl.envs.backends.custom_env import CustomEnv, is_factory
from mtxl_rl.saved_agent import SavedAgent

MAX_ENVS = 16
"""Environments that are stepped together, at most."""
SEED = 2**31 + 1
"""Other episodes than those of `mtxl_rl.evaluate`, so that the best checkpoint is not chosen by the
episodes that test it."""


def evaluate_while_training(
    saved: SavedAgent, *, episodes: int, env: CustomEnv | None = None
) -> dict[str, float]:
    """Play the same new episodes at each call; the training run's numbers do not change.

    Args:
        saved: The agent as it is now.
        episodes: Number of episodes.
        env: See `Agent.evaluate`.

    Returns:
        Means over the episodes, as "eval/return", and "time/eval_seconds".
    """
    begin = time.perf_counter()
    num_envs = min(episodes, MAX_ENVS) if env is None or is_factory(env) else None
    device = saved.config.torch_device()
    with unchanged_random_state(device):
        agent = Agent(saved, device=str(device))
        results = agent.evaluate(
            env, episodes=episodes, num_envs=num_envs, seed=saved.config.seed + SEED
        )
    means = {
        f"eval/{key}": statistics.fmean(episode[key] for episode in results if key in episode)
        for key in sorted({key for episode in results for key in episode})
    }
    return means | {"time/eval_seconds": time.perf_counter() - begin}


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python after the block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
