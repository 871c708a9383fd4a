"""A seed for each environment of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def seed_per_env(
    seed: int | Sequence[int | None], *, num_envs: int, largest: int | None = None
) -> list[Any]:
    """Environment i's seed, an int: seed + i, or seed[i] of a sequence, which may also be None.

    Args:
        seed: One number, or one for each environment.
        num_envs: Number of environments.
        largest: Seeds are in 0 .. largest; None: not checked.

    Raises:
        ValueError: the sequence has another length, or a seed is out of range.
    """
    seeds: list[int | None]
    if isinstance(seed, int | np.integer):
        seeds = [int(seed) + i for i in range(num_envs)]
    else:
        seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(
            f"got {len(seeds)} seeds for {num_envs} environments; pass one int, or one for each."
        )
    if largest is not None and not all(0 <= each <= largest for each in seeds if each is not None):
        raise ValueError(
            f"seed={seed} is not legal for {num_envs} environments; pass one int, or one for each, "
            f"from 0 to {largest}."
        )
    return seeds
