"""The random streams: their own, even, and the published generator."""

import numpy as np
import pytest

from mtxl_rl.envs.seeds import seed_per_env
from mtxl_rl.envs.streams import RandomStreams, distinct

ROWS = np.arange(3)


def streams_from(seed: int, num_envs: int) -> RandomStreams:
    return RandomStreams(seed_per_env(seed, num_envs=num_envs))


def test_the_generator_is_splitmix64() -> None:
    streams = RandomStreams([0])
    streams.state[:] = 1234567
    # The first numbers for this seed as other implementations list them.
    expected = np.array(
        [6457827717110365317, 3203168211198807973, 9817491932198370423], dtype=np.uint64
    )
    drawn = streams.uniform(np.array([0]), 3)[0]
    np.testing.assert_array_equal(drawn, (expected >> np.uint64(11)) * 2.0**-53)


def test_a_stream_does_not_depend_on_the_number_of_streams_nor_on_the_cut_of_draws() -> None:
    few, many = streams_from(5, 3), streams_from(5, 8)
    together = few.uniform(ROWS, 10)
    one_by_one = [many.uniform(np.array([row, 7 - row]), 5)[0] for row in ROWS for _ in range(2)]
    np.testing.assert_array_equal(together, np.reshape(one_by_one, (3, 10)))


def test_streams_of_a_batch_differ_and_stream_i_has_seed_plus_i() -> None:
    first, second = (
        streams_from(0, 64).state,
        streams_from(1, 64).state,
    )
    assert len(np.unique(first)) == 64
    np.testing.assert_array_equal(first[1:], second[:-1])


def test_a_seed_for_each_row_seeds_that_row() -> None:
    first, second = RandomStreams([4, 5, 6]), RandomStreams([6, 5, 4])
    np.testing.assert_array_equal(first.state, second.state[::-1])


@pytest.mark.parametrize("high", [2, 4, 13])
def test_integers_are_even(high: int) -> None:
    counts = np.bincount(streams_from(1, 3).integers(ROWS, high, 40_000).ravel())
    expected = 120_000 / high
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # Beyond the 1 - 1e-6 quantile of chi squared with 12 degrees of freedom or fewer.
    assert chi_squared < 54


def test_each_card_lies_at_each_place_equally_often() -> None:
    orders = streams_from(2, 30_000).permutations(np.arange(30_000), 5)
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    counts = np.array(
        [[(orders[:, place] == card).sum() for card in range(5)] for place in range(5)]
    )
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts, 6000, atol=5 * np.sqrt(30_000 * 0.2 * 0.8))


def test_distinct_numbers_are_distinct_and_every_order_is_as_likely() -> None:
    drawn = distinct(RandomStreams([3]).uniform(np.array([0]), 90_000).reshape(-1, 3), high=4)
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 24
    assert all(len(set(order)) == 3 for order in orders.tolist())
    np.testing.assert_allclose(counts, 1250, atol=5 * np.sqrt(1250))
