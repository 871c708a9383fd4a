"""Play whole episodes with a trained policy, with its long-term memory on or ablated."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mtxl_rl.agents.actor import Actor
from mtxl_rl.torso import Cache

MEMORIES = ("on", "zero", "noise")
"""Settings of the long-term memory: see `ablate_memory`."""


@torch.no_grad()
def play_episodes(
    actor: Actor,
    *,
    episodes: int,
    seed: int | None = None,
    memory: str = "on",
    on_step: Callable[[Actor], None] | None = None,
    on_count: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Return, length and, where the environment reports it, success of new episodes.

    Every environment plays its share of `episodes`, so that short ones are not over-represented.

    Args:
        actor: the policy in its environments.
        episodes: number of episodes.
        seed: seed of the environments; None keeps the one they have.
        memory: setting of the long-term memory, see `ablate_memory`.
        on_step: called with the actor before each step and after the last one.
        on_count: called after each step with the number of episodes that ended.
    """
    actor.reset(seed=seed)
    num_envs = actor.env.num_envs
    remaining = episode_shares(episodes, num_envs=num_envs)
    first_env = actor.world.rows(num_envs).start
    counted: list[dict[str, float]] = []
    with actor.policy.autocast():
        cache = actor.prefill(actor.policy.torso.initial_state(num_envs))
        while remaining.any():
            if on_step is not None:
                on_step(actor)
            ablate_memory(cache, memory)
            _, ended = actor.step()
            for episode in ended:
                if remaining[episode.env - first_env]:
                    remaining[episode.env - first_env] -= 1
                    counted.append(episode.statistics())
            if on_count is not None:
                on_count(len(counted))
    if on_step is not None:
        on_step(actor)  # Its inputs hold the last step's reward.
    return counted


def episode_shares(episodes: int, *, num_envs: int) -> NDArray[np.int64]:
    """How many of the episodes each environment plays [B]: equal numbers, or one more."""
    shares = np.full(num_envs, episodes // num_envs, dtype=np.int64)
    shares[: episodes % num_envs] += 1
    return shares


def ablate_memory(cache: Cache, setting: str) -> None:
    """Set the long-term memory: on keeps it, zero zeroes it, noise replaces it.

    The noise is normal, with the root mean square of the memory that it replaces.
    """
    if setting == "zero":
        cache.long_term.zero_()
    elif setting == "noise":
        scale = cache.long_term.square().mean().sqrt()
        cache.long_term.copy_(torch.randn_like(cache.long_term) * scale)
