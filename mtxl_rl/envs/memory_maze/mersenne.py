"""The 64-bit Mersenne Twister and the distributions that labmaze's wheels draw from it.

A C++ standard fixes the generator, `std::mt19937_64`, but not how a distribution uses its numbers.
labmaze's Linux wheels are built with GCC 10, so these are that library's methods. Numbers past the
largest multiple of the range are rejected, and a shuffle draws two positions at a time.

Matsumoto and Nishimura (1998), "Mersenne Twister", ACM TOMACS 8(1), and the authors' 64-bit version
of 2004.

A state is a uint64 array [313]: the generator's 312 words, then the index of the next one.
"""

import numpy as np
from jaxtyping import UInt64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import bare_kernel, inlined, kernel

_NUM_WORDS = 312
_MIDDLE = 156
_INDEX = _NUM_WORDS
"""Position in a state of the index of its next word."""

_MATRIX = np.uint64(0xB5026F5AA96619E9)
_UPPER_BITS = np.uint64(0xFFFFFFFF80000000)
_LOWER_BITS = np.uint64(0x7FFFFFFF)
_SEED_FACTOR = np.uint64(6364136223846793005)
_TEMPERING_1 = np.uint64(0x5555555555555555)
_TEMPERING_2 = np.uint64(0x71D67FFFEDA60000)
_TEMPERING_3 = np.uint64(0xFFF7EEE000000000)
_LARGEST = np.uint64(0xFFFFFFFFFFFFFFFF)
_WIDTHS = np.array([0] + [(2**64 - 1) // count for count in range(1, 65)], np.uint64)
"""Widths of the intervals into which `draw_below` cuts the numbers: a division takes 10 ns."""
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@kernel
def seeded_state(seed: int) -> UInt64[np.ndarray, "313"]:
    """The state of `std::mt19937_64(seed)`."""
    state = np.empty(_NUM_WORDS + 1, np.uint64)
    state[0] = np.uint64(seed)
    for i in range(1, _NUM_WORDS):
        before = state[i - 1]
        state[i] = _SEED_FACTOR * (before ^ (before >> np.uint64(62))) + np.uint64(i)
    state[_INDEX] = np.uint64(_NUM_WORDS)
    return state


@bare_kernel
def _refill(state: NDArray[np.uint64]) -> None:
    """Replace all words by the next ones, and start again at the first."""
    for i in range(_MIDDLE):
        state[i] = state[i + _MIDDLE] ^ _twisted(state[i], state[i + 1])
    for i in range(_MIDDLE, _NUM_WORDS - 1):
        state[i] = state[i - _MIDDLE] ^ _twisted(state[i], state[i + 1])
    state[_NUM_WORDS - 1] = state[_MIDDLE - 1] ^ _twisted(state[_NUM_WORDS - 1], state[0])
    state[_INDEX] = _ZERO


@inlined
def _twisted(word: np.uint64, following: np.uint64) -> np.uint64:
    joined = (word & _UPPER_BITS) | (following & _LOWER_BITS)
    return (joined >> _ONE) ^ ((_ZERO - (joined & _ONE)) & _MATRIX)


@bare_kernel
def next_word(state: NDArray[np.uint64]) -> np.uint64:
    """The next 64 bits."""
    if state[_INDEX] >= np.uint64(_NUM_WORDS):
        _refill(state)
    index = np.int64(state[_INDEX])
    state[_INDEX] = np.uint64(index + 1)
    x = state[index]
    x ^= (x >> np.uint64(29)) & _TEMPERING_1
    x ^= (x << np.uint64(17)) & _TEMPERING_2
    x ^= (x << np.uint64(37)) & _TEMPERING_3
    return np.uint64(x ^ (x >> np.uint64(43)))


@bare_kernel
def draw_below(state: NDArray[np.uint64], count: int) -> int:
    """A number from 0 to count - 1, as `std::uniform_int_distribution` draws it.

    The 64-bit numbers are cut into `count` equal intervals, and those that are left over are drawn
    again.
    """
    width = _WIDTHS[count] if count < len(_WIDTHS) else _LARGEST // np.uint64(count)
    limit = width * np.uint64(count)
    word = next_word(state)
    while word >= limit:
        word = next_word(state)
    return int(np.int64(word // width))


@inlined
def draw_unit(state: NDArray[np.uint64]) -> float:
    """A float from 0 to 1, as `std::uniform_real_distribution` draws it."""
    return np.float64(next_word(state)) * 2.0**-64


@bare_kernel
def shuffle(state: NDArray[np.uint64], rows: NDArray[np.int64], count: int) -> None:
    """Shuffle the first `count` rows of an array [at least count, columns], as `std::shuffle`.

    Element i is swapped with one of 0 .. i. One draw serves two elements; with an even count the
    second element comes first and alone.
    """
    i = 1
    if count > 1 and count % 2 == 0:
        _swap(rows, 1, draw_below(state, 2))
        i = 2
    while i < count:
        both = draw_below(state, (i + 1) * (i + 2))
        _swap(rows, i, both // (i + 2))
        _swap(rows, i + 1, both % (i + 2))
        i += 2


@inlined
def _swap(rows: NDArray[np.int64], i: int, j: int) -> None:
    for column in range(rows.shape[1]):
        rows[i, column], rows[j, column] = rows[j, column], rows[i, column]
