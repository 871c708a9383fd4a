"""Aggregates over runs and tasks with their uncertainty, as Agarwal et al. 2021 (2108.13264) ask.

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

    The ends are NaN where a single run says nothing of how runs differ.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.estimate:.2f} (no interval)"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean and the half-width of its 95 % confidence interval (normal approximation).

    The half-width is NaN of a single number.
    """
    array = np.asarray(numbers, dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(half)


def interquartile_mean(scores: Mapping[str, Scores]) -> dict[str, Interval]:
    """The mean of the middle half of all runs' scores, for each algorithm."""
    from rliable.metrics import aggregate_iqm

    return _estimate(scores, lambda matrix: np.array([aggregate_iqm(matrix)]))


def probability_of_improvement(scores: Mapping[str, Scores], *, over: str) -> dict[str, Interval]:
    """How probable it is that a run of an algorithm beats one of `over` on a task (ties: half)."""
    from rliable.metrics import probability_of_improvement as probability

    pairs = {name: (matrix, scores[over]) for name, matrix in scores.items() if name != over}
    return _estimate(pairs, lambda ours, theirs: np.array([probability(ours, theirs)]))


def performance_profiles(
    scores: Mapping[str, Scores], thresholds: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The fraction of runs above each threshold, and its interval [2, thresholds]."""
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
    # Resamples of a single run are all alike: an interval of no width would be a claim.
    alone = {name for name, given in scores.items() if min(map(len, _matrices(given))) == 1}
    return {
        name: Interval(
            float(points[name][0]),
            *(math.nan if name in alone else float(end) for end in intervals[name][:, 0]),
        )
        for name in scores
    }


def _matrices(given: Scores | tuple[Scores, ...]) -> tuple[Scores, ...]:
    return given if isinstance(given, tuple) else (given,)
