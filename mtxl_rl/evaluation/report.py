"""The report of a suite: tables as Markdown and CSV, figures, and provenance.

FOLDER/report.md  scores.csv  provenance.json
FOLDER/learning_curves.png .svg   scores.png .svg   profiles.png .svg
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mtxl_rl.evaluation import plots
from mtxl_rl.evaluation.intervals import (
    Interval,
    Scores,
    interquartile_mean,
    probability_of_improvement,
)
from mtxl_rl.evaluation.suite_runner import Suite
from mtxl_rl.tracking.files import write_text
from mtxl_rl.tracking.metrics import METRICS_FILE
from mtxl_rl.tracking.run_record import commit

_CHARTS = {"return": "charts/episodic_return", "success": "charts/success"}
"""The metric of a training run for each score of a suite."""
_MIN_PROFILE_RUNS = 3

_CSV_COLUMNS = ["task", "torso", "seed", "setting", "measure", "score", "normalised", "episodes"]
_COLUMNS = [*_CSV_COLUMNS, "is_transfer", "evidence"]


def write_report(suite: Suite, *, command: Sequence[str]) -> Path:
    """Write the report of a suite's finished runs; the page lists the missing ones.

    Returns:
        The path of the Markdown page.

    Raises:
        OSError: The folder cannot be written.
    """
    scores = read_scores(suite)
    matrices = _matrices(suite, scores)
    csv = scores.to_csv(index=False, columns=_CSV_COLUMNS, float_format="%.4f")
    write_text(suite.folder / "scores.csv", csv)
    write_text(suite.folder / "provenance.json", json.dumps(provenance(suite, command), indent=2))
    _draw(suite, scores, matrices)
    page = suite.folder / "report.md"
    write_text(page, "\n\n".join(_page(suite, scores, matrices, command)) + "\n")
    return page


def read_scores(suite: Suite) -> pd.DataFrame:
    """Return one row per finished evaluation: its mean score, raw and normalised."""
    rows = []
    for run in suite.runs():
        task = suite.tasks[run.task]
        paths = {"": run.evaluation}
        paths |= {options: run.transfer(i) for i, options in enumerate(task.transfer)}
        for options, path in paths.items():
            document = (
                json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"episodes": {}}
            )
            for memory, episodes in document["episodes"].items():
                score = float(np.mean([episode[task.score] for episode in episodes]))
                rows.append(
                    (run.task, run.torso, run.seed, options or memory, task.score, score,
                     task.normalised(score), len(episodes), bool(options), document["evidence"])
                )  # fmt: skip
    scores = pd.DataFrame(rows, columns=_COLUMNS).astype({"is_transfer": bool})
    for name, order in (
        ("task", list(suite.tasks)),
        ("torso", suite.torsos),
        ("setting", scores["setting"].unique()),
    ):
        scores[name] = pd.Categorical(scores[name], categories=order)
    return scores


def provenance(suite: Suite, command: Sequence[str]) -> dict[str, Any]:
    """Return what is needed to repeat the suite: command, versions, settings, hardware."""
    packages = ("mtxl_rl", "torch", "numpy", "gymnasium", "envpool")
    return {
        "date": datetime.now().isoformat(timespec="seconds"),
        "command": " ".join(command),
        "commit": commit(),
        "suite": suite.name,
        "tasks": {name: task.options for name, task in suite.tasks.items()},
        "torsos": suite.torsos,
        "seeds": list(range(suite.seeds)),
        "episodes": suite.episodes,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or sys.platform


def _matrices(suite: Suite, scores: pd.DataFrame) -> dict[str, Scores]:
    """Normalised scores [runs, tasks] of each torso, over the seeds that finished every task."""
    matrices = {}
    for torso, rows in _with_memory(scores).groupby("torso", observed=True):
        table = rows.pivot(index="seed", columns="task", values="normalised")
        table = table.reindex(columns=list(suite.tasks)).dropna()
        if len(table):
            matrices[str(torso)] = table.to_numpy(dtype=np.float64)
    return matrices


def _with_memory(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the task itself with the memory in use."""
    return scores[scores["setting"] == "on"]


@cache
def _interval(scores: tuple[float, ...]) -> Interval:
    """Interquartile mean of one task's runs; cached because it takes 2,000 resamples."""
    return interquartile_mean({"": np.array(scores, dtype=np.float64)[:, None]})[""]


def _page(
    suite: Suite, scores: pd.DataFrame, matrices: Mapping[str, Scores], command: Sequence[str]
) -> Iterator[str]:
    """The paragraphs of the Markdown page."""
    yield f"# Suite {suite.name}"
    yield (
        f"`{' '.join(command)}`; see provenance.json for commit, versions and hardware.\n"
        "Interquartile means over n seeds with 95 % stratified bootstrap intervals."
    )
    with_memory = _with_memory(scores)
    yield to_markdown(_interval_table(suite, with_memory, rows=["task", "measure"]))
    if matrices:
        yield to_markdown(_aggregates(matrices))
    yield "![learning curves](learning_curves.png)\n![normalised scores](scores.png)"
    yield "## Controls: the long-term memory ablated (zeroed), or replaced by noise"
    controls = scores[~scores["is_transfer"]]
    yield to_markdown(_interval_table(suite, controls, rows=["task", "setting"]))
    transfer = scores[scores["is_transfer"]]
    if len(transfer):
        yield "## Transfer: the same agents in other environments, without further training"
        yield to_markdown(_interval_table(suite, transfer, rows=["task", "setting"]))
    yield "## Does a task need long-term memory?"
    evidence = with_memory.groupby(["task", "torso"], observed=True)["evidence"].last()
    yield "\n".join(f"- {task}, {torso}: {text}" for (task, torso), text in evidence.items())
    missing = [
        f"{run.task}/{run.torso}/seed_{run.seed}"
        for run in suite.runs()
        if not run.evaluation.exists()
    ]
    if missing:
        yield f"**Missing: {', '.join(missing)}.**"


def _interval_table(suite: Suite, scores: pd.DataFrame, *, rows: list[str]) -> pd.DataFrame:
    """Interquartile means as text; one column per torso."""
    cells = scores.groupby([*rows, "torso"], observed=True)["score"].agg(
        lambda column: f"{_interval(tuple(column))} n={len(column)}"
    )
    return cells.unstack("torso").reindex(columns=suite.torsos).astype(object).fillna("-")


def _aggregates(matrices: Mapping[str, Scores]) -> pd.DataFrame:
    """Scores over all tasks, from the normalised scores."""
    first = next(iter(matrices))
    table = {
        "all tasks, normalised": interquartile_mean(matrices),
        f"P(better than {first})": probability_of_improvement(matrices, over=first),
    }
    frame = pd.DataFrame({name: {k: str(v) for k, v in row.items()} for name, row in table.items()})
    return frame.rename_axis("torso").reindex(list(matrices)).astype(object).fillna("-")


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table, with its index, as Markdown."""
    table = table.rename(columns=str).reset_index()
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _draw(suite: Suite, scores: pd.DataFrame, matrices: Mapping[str, Scores]) -> None:
    """Write the figures; the performance profile needs three seeds."""
    measures = {name: task.score for name, task in suite.tasks.items()}
    curves = [
        plots.read_curve(run.folder, _CHARTS[measures[run.task]]).assign(
            task=run.task, label=run.torso
        )
        for run in suite.runs()
        if (run.folder / METRICS_FILE).exists()
    ]
    if curves:
        title = f"Suite {suite.name}: mean over seeds, and range from lowest to highest seed"
        figure = plots.draw_curves(pd.concat(curves), title=title, ylabels=measures)
        plots.save_figure(figure, suite.folder / "learning_curves")
    rows = [
        (task, torso, *_interval(tuple(column)))
        for (task, torso), column in _with_memory(scores).groupby(
            ["task", "torso"], observed=True, sort=True
        )["normalised"]
    ]
    if rows:
        intervals = pd.DataFrame(rows, columns=["task", "torso", *Interval._fields])
        title = f"Suite {suite.name}: interquartile mean, 95 % interval"
        plots.save_figure(plots.draw_scores(intervals, title=title), suite.folder / "scores")
    # The curves of one or two runs are steps, which show nothing of a distribution.
    if matrices and min(map(len, matrices.values())) >= _MIN_PROFILE_RUNS:
        title = f"Suite {suite.name}: performance profile over {len(suite.tasks)} tasks"
        figure = plots.draw_profiles(matrices, title=title)
        plots.save_figure(figure, suite.folder / "profiles")
