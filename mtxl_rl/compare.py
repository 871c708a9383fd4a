"""Compare runs: `python -m mtxl_rl.compare RUN RUN ...`, a table and the learning curves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.compose import preset_options, torso_preset, values
from mtxl_rl.config import TrainConfig
from mtxl_rl.config_files import load_config
from mtxl_rl.evaluation.intervals import mean_text
from mtxl_rl.tracking.cli import make_writable, print_line, show
from mtxl_rl.tracking.metrics import WINDOW_SIZE, Row, read_rows

USAGE = """\
python -m mtxl_rl.compare RUN_DIR RUN_DIR ... [option=value ...]     compare runs
"""

_IGNORED = ("seed", "run_dir", "resume")


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """The options of `mtxl_rl.compare`."""

    runs: list[str] = field(default_factory=list)
    """Folders of runs; `runs=` can be left out."""
    metric: str = "charts/episodic_return"
    """Column of metrics.jsonl to compare."""
    score: float | None = None
    """Add, for each run, the step at which the metric first reaches this score, and its lowest
    value after that step. Rows before the 100th episode do not count."""
    output: str = "compare"
    """The curves are written to OUTPUT.png and OUTPUT.svg."""

    def __post_init__(self) -> None:
        """Check that there are runs."""
        if not self.runs:
            raise ValueError("runs are missing; give the folders of the runs to compare")


@dataclass(kw_only=True, slots=True)
class Group:
    """Runs whose options differ in nothing but the seed."""

    runs: list[Path]
    config: TrainConfig
    options: dict[str, str]
    """The options in which the groups differ."""
    label: str = ""
    """Its name in the legend."""


def compare(runs: Sequence[Path], *, metric: str, output: Path, score: float | None = None) -> None:
    """Print the last and highest values of `metric` over the seeds, and draw the curves.

    With a `score` the table also has when each run reached it, and the lowest value after that.

    Raises:
        FileNotFoundError: A folder holds no run.
        ImportError: pandas or matplotlib is not installed.
        ValueError: A run's rows do not have the metric.
    """
    try:
        import pandas as pd

        from mtxl_rl.evaluation.plots import draw_curves, read_curve, save_figure
    except ImportError as error:
        raise ImportError(f"compare needs {error.name}: pip install 'mtxl_rl[report]'") from error
    groups, curves = group_runs(runs), dict[Path, Any]()
    for group in groups:
        for run in group.runs:
            curve = read_curve(run, metric).assign(task=metric, label=group.label)
            if curve.empty:
                known = sorted({key for row in read_rows(run) for key in row})
                raise ValueError(f"{run} has no {metric}; its metrics are {', '.join(known)}")
            curves[run] = curve
    rows = [_summary(group, [curves[run] for run in group.runs]) for group in groups]
    if score is not None:
        for row, group in zip(rows, groups, strict=True):
            row |= _at_score(group, metric=metric, score=score)
    _show(rows, title=metric)
    figure = draw_curves(pd.concat(curves.values()), title="", ylabels={metric: metric})
    save_figure(figure, output)
    print_line(f"curves: {output}.png, {output}.svg")


def group_runs(runs: Sequence[Path]) -> list[Group]:
    """The runs in groups of equal options, in the order of their first runs."""
    groups = dict[str, Group]()
    for run in runs:
        config = load_config(run)
        options = {key: str(value) for key, value in values(config).items() if key not in _IGNORED}
        key = str({"env": config.env.name, **options})
        groups.setdefault(key, Group(runs=[], config=config, options=options)).runs.append(run)
    names, every = _short_names(runs), list(groups.values())
    keys = dict.fromkeys(key for group in every for key in group.options)
    differing = [
        key
        for key in keys
        if key not in preset_options() and len({group.options.get(key) for group in every}) > 1
    ]
    for group in every:
        group.options = {key: group.options[key] for key in differing if key in group.options}
        group.label = names[group.runs[0]]
        if len(group.runs) > 1:
            group.label = " ".join([torso_preset(group.config.torso), *_assignments(group)])
    return every


def _summary(group: Group, curves: Sequence[Any]) -> dict[str, str]:
    """A group's row of the table, from its runs' `read_curve`."""
    speeds = [row["charts/SPS"] or 0.0 for run in group.runs for row in read_rows(run)]
    steps = {f"{curve['step'].iloc[-1]:,.0f}" for curve in curves}
    return {
        "runs": "\n".join(map(str, group.runs)),
        "env": group.config.env.name,
        "torso": torso_preset(group.config.torso),
        "other options": "\n".join(_assignments(group)),
        "steps": "\n".join(sorted(steps)),
        "last": _over_seeds([curve["value"].iloc[-1] for curve in curves]),
        "highest": _over_seeds([curve["value"].max() for curve in curves]),
        "steps/s": f"{np.median(speeds):,.0f}",
    }


def _show(rows: Sequence[dict[str, str]], *, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        is_text = column in ("runs", "env", "torso", "other options")
        table.add_column(column, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*row.values())
    show(table)


def _at_score(group: Group, *, metric: str, score: float) -> dict[str, str]:
    """The table's columns of `first_and_lowest`, with a line for each run."""
    firsts, lowests = list[str](), list[str]()
    for run in group.runs:
        first, lowest = first_and_lowest(read_rows(run), metric, score=score)
        firsts.append("never" if first is None else f"{first:,}")
        lowests.append("" if lowest is None else f"{lowest:.3f}")
    return {f"first at {score:g}": "\n".join(firsts), "lowest after": "\n".join(lowests)}


def first_and_lowest(
    rows: Sequence[Row], metric: str, *, score: float
) -> tuple[int | None, float | None]:
    """The step at which `metric` first reaches `score`, and its lowest value at later steps.

    None where it never does, or has no later value. Rows in which the mean over the last 100
    episodes has fewer do not count: their steps are fewer than those of 100 episodes.
    """
    first, lowest = None, None
    for row in rows:
        step, value = row["step"], row.get(metric)
        length = row.get("charts/episodic_length") or 0.0
        assert step is not None
        if value is None or step < WINDOW_SIZE * length:
            continue
        if first is not None:
            lowest = value if lowest is None else min(lowest, value)
        elif value >= score:
            first = int(step)
    return first, lowest


def _assignments(group: Group) -> list[str]:
    return [f"{key}={value}" for key, value in group.options.items()]


def _over_seeds(numbers: Sequence[float]) -> str:
    """One number, or the mean of several with its 95 % interval."""
    return f"{numbers[0]:.3f}" if len(numbers) == 1 else mean_text(numbers)


def _short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run's path without the folders that all share, so that a legend has room for it."""
    shared = os.path.commonpath([run.resolve().parent for run in runs])
    return {run: str(run.resolve().relative_to(shared)) for run in runs}


def run(config: CompareConfig) -> None:
    """Compare the runs, and check first that the curves can be written."""
    output = Path(config.output)
    make_writable(output.with_suffix(".png"))
    runs = [Path(run) for run in config.runs]
    compare(runs, metric=config.metric, output=output, score=config.score)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    options = options_of(CompareConfig)
    command = Command(usage=USAGE, options=options, base=CompareConfig, positional="runs")
    run_command(argv, describe=lambda _: command, run=run)


if __name__ == "__main__":
    main()
