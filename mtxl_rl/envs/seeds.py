"""A seed for each environment of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def seed_per_env(
    seed: int | Sequence[int | None], *, num_envs: int, largest: int | None = None
) -> list[Any]:
    """Environment i's seed: seed + i, or seed[i] of a sequence.

    They are ints, and None only where the sequence has None.

    Args:
        seed: One number, or for each environment a number, or None where that is legal.
        num_envs: Number of environments.
        largest: Every seed must be a number from 0 to this; None: not checked.

    Raises:
        ValueError: the sequence has another length, or a seed is out of range.
    """
    if isinstance(seed, int | np.integer):
        if largest is not None and not 0 <= seed <= largest - num_envs + 1:
            raise ValueError(
                f"seed={seed} is not legal for {num_envs} environments, which get seed, seed + 1, "
                f"...; pass an int from 0 to {largest - num_envs + 1}."
            )
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(
            f"got {len(seed)} seeds for {num_envs} environments; pass one int, or one for each."
        )
    if largest is not None and not all(each is not None and 0 <= each <= largest for each in seed):
        raise ValueError(
            f"seed={list(seed)} is not legal for {num_envs} environments; pass one for each, from "
            f"0 to {largest}."
        )
    return [each if each is None else int(each) for each in seed]
