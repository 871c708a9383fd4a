"""The random number streams: values of the C++ standard, and properties of the distributions."""

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze.mersenne import draw_below, next_word, seeded_state, shuffle


def test_the_ten_thousandth_word_is_that_of_the_cpp_standard() -> None:
    state = seeded_state(5489)  # the standard's default seed; [rand.predef] names the value
    words = [int(next_word(state)) for _ in range(10_000)]
    assert words[-1] == 9981545732273789042


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000])
def test_draws_lie_below_their_count_and_cover_it(count: int) -> None:
    state = seeded_state(1)
    draws = [draw_below(state, count) for _ in range(20 * count)]
    assert min(draws) == 0
    assert max(draws) == count - 1


@pytest.mark.parametrize("count", range(9))
def test_a_shuffle_keeps_all_rows_and_moves_no_others(count: int) -> None:
    rows = np.stack([np.arange(10), np.arange(10) + 100], axis=1)
    state = seeded_state(3)
    for _ in range(20):
        shuffle(state, rows, count)
    np.testing.assert_array_equal(rows[:, 1], rows[:, 0] + 100)
    assert sorted(rows[:count, 0]) == list(range(count))
    assert rows[count:, 0].tolist() == list(range(count, 10))
