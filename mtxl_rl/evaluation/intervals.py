"""Aggregate scores over runs and tasks with intervals, as in Agarwal et al. 2021 (2108.13264).

Scores are normalised: 0 is what an agent without memory can reach, 1 is the best possible. A score
matrix is [runs, tasks]. The estimates are rliable's; its random draws are seeded here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
NUM_RESAMPLES = 2_000


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % stratified bootstrap confidence interval.

    The ends are NaN for a single run, which has no variation between runs.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.estimate:.2f} (no interval)"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % confidence interval (normal approximation).

    The half-width of a single number is NaN.
    """
    array = np.asarray(numbers, dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(half)


def interquartile_mean(scores: Mapping[str, Scores]) -> dict[str, Interval]:
    """Return the mean of the middle half of all runs' scores, for each algorithm."""
    from rliable.metrics import aggregate_iqm

    return _estimate(scores, lambda matrix: np.array([aggregate_iqm(matrix)]))


def probability_of_improvement(scores: Mapping[str, Scores], *, over: str) -> dict[str, Interval]:
    """Return the probability that a run beats one of `over` on a task; a tie counts half."""
    from rliable.metrics import probability_of_improvement as probability

    pairs = {name: (matrix, scores[over]) for name, matrix in scores.items() if name != over}
    return _estimate(pairs, lambda ours, theirs: np.array([probability(ours, theirs)]))


def performance_profiles(
    scores: Mapping[str, Scores], thresholds: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the fraction of runs above each threshold, and its interval [2, thresholds]."""
    from rliable.library import create_performance_profile

    np.random.seed(0)  # noqa: NPY002 - rliable draws from NumPy's global generator
    profiles, intervals = create_performance_profile(dict(scores), thresholds, reps=NUM_RESAMPLES)
    return {name: (profiles[name], intervals[name]) for name in scores}


def _estimate(
    scores: Mapping[str, Scores | tuple[Scores, ...]], function: Callable[..., NDArray[np.float64]]
) -> dict[str, Interval]:
    from rliable.library import get_interval_estimates

    if not scores:
        return {}
    np.random.seed(0)  # noqa: NPY002 - rliable draws from NumPy's global generator
    points, intervals = get_interval_estimates(dict(scores), function, reps=NUM_RESAMPLES)
    # Resamples of a single run are equal; an interval of width 0 would be misleading.
    alone = {name for name, matrices in scores.items() if min(map(len, _as_tuple(matrices))) == 1}
    return {
        name: Interval(
            float(points[name][0]),
            *(math.nan if name in alone else float(end) for end in intervals[name][:, 0]),
        )
        for name in scores
    }


def _as_tuple(matrices: Scores | tuple[Scores, ...]) -> tuple[Scores, ...]:
    return matrices if isinstance(matrices, tuple) else (matrices,)
