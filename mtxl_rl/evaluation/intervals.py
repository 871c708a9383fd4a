"""Aggregate scores over runs and tasks with intervals, as in Agarwal et al. 2021 (2108.13264).

Scores are normalised: 0 is what an agent without memory can reach, 1 is the best possible. A score
matrix is [runs, tasks]. Intervals are stratified: each resample draws the runs of each task anew.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
NUM_RESAMPLES = 2_000
_PERCENTILES = (2.5, 97.5)


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


def mean_text(numbers: Sequence[float]) -> str:
    """Return the mean and its interval as text, as in 0.500 +- 0.010."""
    mean, half = mean_and_interval(numbers)
    return f"{mean:.3f} " + ("(no interval)" if math.isnan(half) else f"+- {half:.3f}")


def interquartile_mean(scores: Mapping[str, Scores]) -> dict[str, Interval]:
    """Return the mean of the middle half of all runs' scores, for each algorithm."""
    estimates = {name: _middle_mean(matrix[None]) for name, matrix in scores.items()}
    resamples = {name: _middle_mean(sample) for name, sample in _resample(scores).items()}
    return {
        name: _interval(estimates[name], resamples[name], num_runs=len(scores[name]))
        for name in scores
    }


def probability_of_improvement(scores: Mapping[str, Scores], *, over: str) -> dict[str, Interval]:
    """Return the probability that a run beats one of `over` on a task; a tie counts half."""
    resamples = _resample(scores)
    return {
        name: _interval(
            _share_of_wins(matrix[None], scores[over][None]),
            _share_of_wins(resamples[name], resamples[over]),
            num_runs=min(len(matrix), len(scores[over])),
        )
        for name, matrix in scores.items()
        if name != over
    }


def performance_profiles(
    scores: Mapping[str, Scores], thresholds: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the fraction of scores above each threshold, and its interval [2, thresholds]."""
    profiles = {}
    for name, sample in _resample(scores).items():
        profile = np.array([(scores[name] > threshold).mean() for threshold in thresholds])
        shares = [(sample > threshold).mean(axis=(1, 2)) for threshold in thresholds]
        profiles[name] = profile, np.percentile(shares, _PERCENTILES, axis=1)
    return profiles


def _resample(scores: Mapping[str, Scores]) -> dict[str, NDArray[np.float64]]:
    """Bootstrap resamples [NUM_RESAMPLES, runs, tasks] of each matrix."""
    rng = np.random.default_rng(0)
    return {
        name: np.take_along_axis(
            matrix[None], rng.integers(len(matrix), size=(NUM_RESAMPLES, *matrix.shape)), axis=1
        )
        for name, matrix in scores.items()
    }


def _middle_mean(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean of each matrix of [resamples, runs, tasks]."""
    ordered = np.sort(matrices.reshape(len(matrices), -1), axis=1)
    cut = ordered.shape[1] // 4
    return ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)


def _share_of_wins(
    matrices: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of pairs of runs in which the first scores higher, over tasks, for each resample."""
    difference = matrices[:, :, None] - others[:, None]
    return (np.sign(difference) / 2 + 0.5).mean(axis=(1, 2, 3))


def _interval(
    estimate: NDArray[np.float64], resamples: NDArray[np.float64], *, num_runs: int
) -> Interval:
    # Resamples of a single run are equal; an interval of width 0 would be misleading.
    ends = (math.nan, math.nan) if num_runs == 1 else np.percentile(resamples, _PERCENTILES)
    return Interval(float(estimate[0]), float(ends[0]), float(ends[1]))
