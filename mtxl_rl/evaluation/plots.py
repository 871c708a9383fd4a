"""Figures of runs and suites: learning curves, scores, performance profiles."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtxl_rl.evaluation.intervals import Scores, performance_profiles
from mtxl_rl.tracking.files import atomic_write
from mtxl_rl.tracking.metrics import read_rows


def read_curve(run_dir: Path, metric: str) -> pd.DataFrame:
    """Return the columns `step` and `value` of a run's rows that have the metric, maybe none."""
    rows = pd.DataFrame(read_rows(run_dir)).reindex(columns=["step", metric]).dropna()
    return rows.rename(columns={metric: "value"})


def draw_curves(curves: pd.DataFrame, *, title: str, ylabels: Mapping[str, str]) -> Figure:
    """Plot a panel per task, with the mean over runs and the range from lowest to highest run.

    Args:
        curves: Columns `task`, `label`, `step`, `value`; runs with the same label are averaged at
            the steps that all of them have.
        title: Title of the figure.
        ylabels: Name of the value, by task; its order is that of the panels.
    """
    num_columns = min(3, len(ylabels))
    num_rows = -(-len(ylabels) // num_columns)
    size = (max(5.0, 4.2 * num_columns), 3.2 * num_rows + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flat
    colors = {label: f"C{n}" for n, label in enumerate(curves["label"].unique())}
    for axis in axes[len(ylabels) :]:
        axis.set_axis_off()
    for axis, (task, ylabel) in zip(axes, ylabels.items(), strict=False):
        for label, runs in curves[curves["task"] == task].groupby("label", sort=False):
            points = runs.groupby("step")["value"].agg(["mean", "min", "max", "count"])
            points = points[points["count"] == points["count"].max()]
            axis.plot(points.index, points["mean"], color=colors[label], label=label)
            band = (points.index, points["min"], points["max"])
            axis.fill_between(*band, color=colors[label], alpha=0.2)
        axis.set(title=task, xlabel="environment steps", ylabel=ylabel)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    _add_legend(figure, num_columns=1 if num_columns == 1 else 4)
    return figure


def draw_scores(intervals: pd.DataFrame, *, title: str) -> Figure:
    """Plot bars of normalised scores; columns `task`, `torso`, `estimate`, `low`, `high`."""
    tasks, torsos = intervals["task"].unique(), intervals["torso"].unique()
    estimate, low, high = (
        intervals.pivot(index="task", columns="torso", values=name).reindex(tasks)[torsos]
        for name in ("estimate", "low", "high")
    )
    errors = np.stack([estimate - low, high - estimate])  # [2, tasks, torsos]
    figure = Figure(figsize=(max(5.0, 1.6 * len(tasks)), 4.0), layout="constrained")
    axis = figure.subplots()
    estimate.plot.bar(ax=axis, yerr=errors.transpose(2, 0, 1), capsize=2, legend=False, width=0.8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(axis.get_xticks(), tasks, rotation=20, ha="right")
    axis.set(title=title, xlabel="", ylabel="normalised score\n(0: no memory, 1: best possible)")
    axis.grid(axis="y", alpha=0.3)
    _add_legend(figure, num_columns=4)
    return figure


def draw_profiles(matrices: Mapping[str, Scores], *, title: str) -> Figure:
    """Plot the fraction of runs and tasks above each normalised score, with 95 % intervals."""
    thresholds = np.linspace(0, 1, 51)
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    axis = figure.subplots()
    for name, (profile, ends) in performance_profiles(matrices, thresholds).items():
        (line,) = axis.plot(thresholds, profile, label=name)
        axis.fill_between(thresholds, *ends, color=line.get_color(), alpha=0.2)
    axis.set(title=title, xlabel="normalised score", ylabel="fraction of runs above")
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as `<path>.png` and `<path>.svg`."""
    for suffix in (".png", ".svg"):
        with atomic_write(path.with_name(path.name + suffix)) as temporary:
            figure.savefig(temporary, dpi=120)


def _add_legend(figure: Figure, *, num_columns: int) -> None:
    """Add one legend below all panels."""
    entries: dict[str, Artist] = {}
    for axis in figure.axes:
        handles, names = axis.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=num_columns
    )
