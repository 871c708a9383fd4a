"""One random stream for each environment of a batch, drawn for many environments in one call.

Environment i's numbers depend only on the seed, on i and on how many it has drawn. They do not
depend on the size of the batch or on other environments' resets. NumPy's generators would need one
call per environment for that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
"""Indices of environments."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class RandomStreams:
    """SplitMix64 generators, one for each row: add gamma to the state, then mix its bits.

    Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators", figure 16. The
    initial states come from `numpy.random.SeedSequence`, so close seeds give unrelated streams.

    Args:
        seeds: One for each environment, at least 0.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        words = [np.random.SeedSequence(int(s)).generate_state(1, np.uint64) for s in seeds]
        self.state = np.concatenate(words)
        self._steps: dict[int, NDArray[np.uint64]] = {}

    def uniform(self, rows: Rows, count: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1) with 53 random bits, [len(rows), count]; rows are distinct."""
        steps = self._steps_of(count)
        states = self.state[rows, None] + steps
        self.state[rows] = states[:, -1]
        return (_mix(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, rows: Rows, high: int, count: int) -> NDArray[np.int64]:
        """Return integers in 0 .. high - 1, [len(rows), count]; their bias is under high / 2^53."""
        return (self.uniform(rows, count) * high).astype(np.int64)

    def permutations(self, rows: Rows, length: int) -> NDArray[np.int64]:
        """Return a random permutation of 0 .. length - 1 for each row, [len(rows), length]."""
        return np.argsort(self.uniform(rows, length), axis=1)

    def _steps_of(self, count: int) -> NDArray[np.uint64]:
        """Return the first `count` multiples of gamma, cached by count."""
        if count not in self._steps:
            self._steps[count] = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
        return self._steps[count]


def distinct(draws: NDArray[np.float64], *, high: int) -> NDArray[np.int64]:
    """Return distinct integers in 0 .. high - 1 for each row of numbers in [0, 1), [n, count].

    Every ordered choice has the same probability.
    """
    count = draws.shape[1]
    chosen = (draws * (high - np.arange(count))).astype(np.int64)
    for index in range(1, count):  # from a rank among the remaining integers to the integer
        for earlier in np.sort(chosen[:, :index], axis=1).T:
            chosen[:, index] += chosen[:, index] >= earlier
    return chosen


def _mix(bits: NDArray[Any]) -> NDArray[Any]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
