"""A suite's results: one table as CSV and Markdown, aggregates, and figures.

FOLDER/report.md  scores.csv  provenance.json
FOLDER/learning_curves.png .svg   scores.png .svg   profiles.png .svg
"""

import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtxl_rl.evaluation.intervals import (
    Interval,
    Scores,
    interquartile_mean,
    performance_profiles,
    probability_of_improvement,
)
from mtxl_rl.evaluation.suite import Suite, SuiteRun
from mtxl_rl.tracking.metrics import Row, read_rows


@dataclass(slots=True)
class Finding:
    """The score of one run under one setting."""

    run: SuiteRun
    setting: str
    """on, off or noise, or a transfer setting's options."""
    score: float
    episodes: int
    evidence: str


def write_report(suite: Suite, *, command: Sequence[str]) -> Path:
    """Write what is known so far of a suite; runs that are missing are said to be.

    Returns:
        The path of the Markdown page.

    Raises:
        ImportError: rliable or matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        import rliable  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a suite's report needs {error.name}: pip install 'mtxl_rl[report]'"
        ) from error
    mpl.use("Agg")
    findings = list(_findings(suite))
    suite.folder.mkdir(parents=True, exist_ok=True)
    _write_scores(suite.folder / "scores.csv", findings)
    (suite.folder / "provenance.json").write_text(
        json.dumps(provenance(suite, command), indent=2) + "\n", encoding="utf-8"
    )
    matrices = _matrices(suite, findings)
    page = suite.folder / "report.md"
    text = "\n".join(_page(suite, findings, matrices, command)) + "\n"
    page.write_text(text, encoding="utf-8")
    _draw(suite, findings, matrices)
    return page


def provenance(suite: Suite, command: Sequence[str]) -> dict[str, Any]:
    """Everything that is needed to do it again."""
    packages = ("mtxl_rl", "torch", "numpy", "gymnasium", "envpool")
    return {
        "date": datetime.now().isoformat(timespec="seconds"),
        "command": " ".join(command),
        "commit": _commit(),
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


def _commit() -> str | None:
    """The commit of the source tree that runs; None where it is not a git checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or sys.platform


def _findings(suite: Suite) -> Iterator[Finding]:
    for one in suite.runs():
        task = suite.tasks[one.task]
        paths = {"": one.evaluation}
        paths |= {option: one.transfer(i) for i, option in enumerate(task.transfer)}
        for option, path in paths.items():
            if not path.exists():
                continue
            document = json.loads(path.read_text(encoding="utf-8"))
            for memory, episodes in document["episodes"].items():
                score = float(np.mean([episode[task.score] for episode in episodes]))
                yield Finding(one, option or memory, score, len(episodes), document["evidence"])


def _write_scores(path: Path, findings: Sequence[Finding]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["task", "torso", "seed", "setting", "measure", "score", "normalised", "episodes"]
        )
        for found in findings:
            one = found.run
            task = one.suite.tasks[one.task]
            normalised = f"{task.normalised(found.score):.4f}"
            writer.writerow([one.task, one.torso, one.seed, found.setting, task.score,
                             f"{found.score:.4f}", normalised, found.episodes])  # fmt: skip


def _scores(
    findings: Sequence[Finding], *, task: str, torso: str, setting: str
) -> dict[int, float]:
    """The score by seed, of every run with such a finding."""
    return {
        found.run.seed: found.score
        for found in findings
        if (found.run.task, found.run.torso, found.setting) == (task, torso, setting)
    }


def _matrices(suite: Suite, findings: Sequence[Finding]) -> dict[str, Scores]:
    """Normalised scores [runs, tasks] of each torso, over the seeds that finished every task."""
    matrices = {}
    for torso in suite.torsos:
        columns = {
            name: _scores(findings, task=name, torso=torso, setting="on") for name in suite.tasks
        }
        seeds = [s for s in range(suite.seeds) if all(s in column for column in columns.values())]
        if seeds:
            rows = [
                [suite.tasks[name].normalised(column[seed]) for name, column in columns.items()]
                for seed in seeds
            ]
            matrices[torso] = np.array(rows, dtype=np.float64)
    return matrices


@cache
def _interval(scores: tuple[float, ...]) -> Interval:
    """Of one task's runs; tables and bars ask for the same ones, and each is 2,000 resamples."""
    return interquartile_mean({"": np.array(scores, dtype=np.float64)[:, None]})[""]


def _page(
    suite: Suite,
    findings: Sequence[Finding],
    matrices: Mapping[str, Scores],
    command: Sequence[str],
) -> Iterator[str]:
    yield f"# Suite {suite.name}"
    yield ""
    yield f"`{' '.join(command)}`; see provenance.json for commit, versions and hardware."
    yield "Interquartile means over seeds with 95 % stratified bootstrap intervals (rliable)."
    yield ""
    yield from _score_table(suite, findings)
    yield ""
    yield from _aggregates(suite, matrices)
    yield ""
    yield "## Controls: the long-term memory emptied, or replaced by noise, when evaluated"
    yield ""
    yield from _setting_table(
        suite, findings, {name: ["on", "off", "noise"] for name in suite.tasks}
    )
    transfer = {name: task.transfer for name, task in suite.tasks.items() if task.transfer}
    if transfer:
        yield ""
        yield "## Transfer: the same agents, not trained further, in other environments"
        yield ""
        yield from _setting_table(suite, findings, transfer)
    yield ""
    yield "## Does a task need long-term memory here?"
    yield ""
    for name in suite.tasks:
        said = {f.run.torso: f.evidence for f in findings
                if f.run.task == name and f.setting == "on"}  # fmt: skip
        for torso, evidence in said.items():
            yield f"- {name}, {torso}: {evidence}"
    missing = [one for one in suite.runs() if not one.evaluation.exists()]
    if missing:
        yield ""
        names = ", ".join(f"{one.task}/{one.torso}/seed_{one.seed}" for one in missing)
        yield f"**Missing: {names}.**"


def _score_table(suite: Suite, findings: Sequence[Finding]) -> Iterator[str]:
    yield f"| task (score) | {' | '.join(suite.torsos)} |"
    yield f"|---|{'---|' * len(suite.torsos)}"
    for name, task in suite.tasks.items():
        cells = []
        for torso in suite.torsos:
            scores = _scores(findings, task=name, torso=torso, setting="on")
            cells.append(f"{_interval(tuple(scores.values()))} n={len(scores)}" if scores else "-")
        yield f"| {name} ({task.score}) | {' | '.join(cells)} |"


def _aggregates(suite: Suite, matrices: Mapping[str, Scores]) -> Iterator[str]:
    """Over all tasks, from normalised scores."""
    if not matrices:
        return
    first = next(iter(matrices))
    means = interquartile_mean(matrices)
    better = probability_of_improvement(matrices, over=first)
    yield f"| all {len(suite.tasks)} tasks, normalised | IQM | P(better than {first}) |"
    yield "|---|---|---|"
    for torso in matrices:
        yield f"| {torso} | {means[torso]} | {better.get(torso, '-')} |"


def _setting_table(
    suite: Suite, findings: Sequence[Finding], settings: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    yield f"| task | setting | {' | '.join(suite.torsos)} |"
    yield f"|---|---|{'---|' * len(suite.torsos)}"
    for name, options in settings.items():
        for setting in options:
            cells = []
            for torso in suite.torsos:
                scores = _scores(findings, task=name, torso=torso, setting=setting)
                cells.append(str(_interval(tuple(scores.values()))) if scores else "-")
            if set(cells) != {"-"}:
                yield f"| {name} | {setting} | {' | '.join(cells)} |"


def _draw(suite: Suite, findings: Sequence[Finding], matrices: Mapping[str, Scores]) -> None:
    """The three figures, each as PNG and SVG."""
    import matplotlib.pyplot as plt

    curves = {
        name: {torso: _curves(suite, name, torso) for torso in suite.torsos} for name in suite.tasks
    }
    labels = {name: task.score for name, task in suite.tasks.items()}
    figure = draw_curves(curves, labels=labels)
    save_figure(figure, suite.folder / "learning_curves")
    save_figure(_draw_bars(suite, findings), suite.folder / "scores")
    if matrices:
        save_figure(_draw_profiles(matrices), suite.folder / "profiles")
    plt.close("all")


def _curves(suite: Suite, task: str, torso: str) -> list[NDArray[np.float64]]:
    metric = f"episode/{suite.tasks[task].score}"
    found = [
        curve(read_rows(one.folder), metric)
        for one in suite.runs()
        if (one.task, one.torso) == (task, torso) and (one.folder / "metrics.jsonl").exists()
    ]
    return [line for line in found if line.size]


def curve(rows: Sequence[Row], metric: str) -> NDArray[np.float64]:
    """(step, metric) of every row of a run's metrics that has it, [rows, 2]."""
    points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def draw_curves(
    curves: Mapping[str, Mapping[str, Sequence[NDArray[np.float64]]]], *, labels: Mapping[str, str]
) -> Any:  # noqa: ANN401
    """A panel per task: the mean over runs of each line, and the range from worst to best run."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, MaxNLocator

    num_columns = min(3, len(curves))
    num_rows = -(-len(curves) // num_columns)
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(4.2 * num_columns, 3.2 * num_rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, lines) in zip(axes.flat, curves.items(), strict=False):
        for index, (label, runs) in enumerate(lines.items()):
            if not runs:
                continue
            steps = np.unique(np.concatenate([run[:, 0] for run in runs]))
            steps = steps[steps <= min(run[-1, 0] for run in runs)]
            table = np.stack([np.interp(steps, run[:, 0], run[:, 1]) for run in runs])
            axis.plot(steps, table.mean(axis=0), label=label, color=f"C{index}")
            axis.fill_between(
                steps, table.min(axis=0), table.max(axis=0), alpha=0.2, color=f"C{index}"
            )
        axis.set_title(name)
        axis.set_xlabel("environment steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_ylabel(labels[name])
        axis.grid(alpha=0.3)
    _add_legend(figure, num_columns=1 if num_columns == 1 else 4)
    return figure


def _add_legend(figure: Any, *, num_columns: int) -> None:  # noqa: ANN401
    """One legend below all panels, where it hides nothing."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, names = axis.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=num_columns)


def _draw_bars(suite: Suite, findings: Sequence[Finding]) -> Any:  # noqa: ANN401
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(
        figsize=(max(5.0, 1.6 * len(suite.tasks)), 3.6), layout="constrained"
    )
    width = 0.8 / len(suite.torsos)
    for i, torso in enumerate(suite.torsos):
        for k, (name, task) in enumerate(suite.tasks.items()):
            scores = _scores(findings, task=name, torso=torso, setting="on")
            if not scores:
                continue
            found = Interval(*map(task.normalised, _interval(tuple(scores.values()))))
            place = k + (i - (len(suite.torsos) - 1) / 2) * width
            error = [[found.estimate - found.low], [found.high - found.estimate]]
            axis.bar(place, found.estimate, width, color=f"C{i}", yerr=error, capsize=2,
                     label=torso if k == 0 else None)  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(suite.tasks)), list(suite.tasks), rotation=20, ha="right")
    axis.set_ylabel("normalised score\n(0: no memory, 1: best)")
    axis.grid(axis="y", alpha=0.3)
    _add_legend(figure, num_columns=4)
    return figure


def _draw_profiles(matrices: Mapping[str, Scores]) -> Any:  # noqa: ANN401
    import matplotlib.pyplot as plt

    thresholds = np.linspace(0, 1, 51)
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for i, (name, (profile, ends)) in enumerate(performance_profiles(matrices, thresholds).items()):
        axis.plot(thresholds, profile, color=f"C{i}", label=name)
        axis.fill_between(thresholds, ends[0], ends[1], color=f"C{i}", alpha=0.2)
    axis.set_xlabel("normalised score")
    axis.set_ylabel("fraction of runs above")
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def save_figure(figure: Any, path: Path) -> None:  # noqa: ANN401
    """Write a figure as PNG and as SVG."""
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120, bbox_inches="tight")
