"""A seed for each environment, from one number or a sequence."""

import pytest

from mtxl_rl.envs.seeds import seed_per_env


def test_one_number_counts_up_and_a_sequence_is_kept() -> None:
    assert seed_per_env(7, num_envs=3) == [7, 8, 9]
    assert seed_per_env(7, num_envs=2, largest=8) == [7, 8]
    assert seed_per_env([5, 2], num_envs=2, largest=5) == [5, 2]
    assert seed_per_env([5, None, 2], num_envs=3) == [5, None, 2]


def test_another_number_of_seeds_and_seeds_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments; pass one int, or one"):
        seed_per_env([1, 2], num_envs=3)
    for seed in (-1, 8):
        with pytest.raises(ValueError, match=r"is not legal for 2 .*; pass an int from 0 to 7"):
            seed_per_env(seed, num_envs=2, largest=8)
    for seeds in ([0, 9], [0, -1], [0, None]):
        with pytest.raises(ValueError, match=r"not legal for 2 .*; pass one for each, from 0 to 8"):
            seed_per_env(seeds, num_envs=2, largest=8)
