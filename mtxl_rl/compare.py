"""Compare runs: `python -m mtxl_rl.compare RUN RUN ...`, a table and the learning curves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.config import load_config
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.tracking.cli import make_writable, say, show
from mtxl_rl.tracking.metrics import read_rows

USAGE = """\
python -m mtxl_rl.compare RUN_DIR RUN_DIR ... [option=value ...]     compare runs
"""


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """The options of `mtxl_rl.compare`."""

    runs: list[str] = field(default_factory=list)
    """Folders of runs; `runs=` can be left out."""
    metric: str = "charts/episodic_return"
    """Column of metrics.jsonl to compare."""
    output: str = "compare"
    """The curves are written to OUTPUT.png and OUTPUT.svg."""

    def __post_init__(self) -> None:
        """Check that there are runs."""
        if not self.runs:
            raise ValueError("runs are missing; give the folders of the runs to compare")


def compare(runs: Sequence[Path], *, metric: str, output: Path) -> None:
    """Print the runs' last and highest values of `metric`, and draw their curves.

    Raises:
        FileNotFoundError: A folder holds no run.
        ImportError: pandas or matplotlib is not installed.
        ValueError: No row of a run has the metric.
    """
    try:
        import pandas as pd

        from mtxl_rl.evaluation.plots import draw_curves, read_curve, save_figure
    except ImportError as error:
        raise ImportError(f"compare needs {error.name}: pip install 'mtxl_rl[report]'") from error
    names = _short_names(runs)
    curves = {run: read_curve(run, metric).assign(task=metric, label=names[run]) for run in runs}
    rows = [_summary(run, curve, metric) for run, curve in curves.items()]
    table = Table(title=metric, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("run", "env", "memory") else "right")
    for row in rows:
        table.add_row(*row.values())
    show(table)
    figure = draw_curves(pd.concat(curves.values()), title="", ylabels={metric: metric})
    save_figure(figure, output)
    say(f"curves: {output}.png, {output}.svg")


def _summary(run: Path, curve: Any, metric: str) -> dict[str, str]:  # noqa: ANN401
    """A run's row of the table, from its `read_curve`."""
    config, rows = load_config(run), read_rows(run)
    if curve.empty:
        known = sorted({key for row in rows for key in row})
        raise ValueError(f"{run} has no {metric}; its metrics are {', '.join(known)}")
    highest = curve.loc[curve["value"].idxmax()]
    speed = float(np.median([row["charts/SPS"] or 0.0 for row in rows]))
    return {
        "run": str(run),
        "env": config.env.name,
        "memory": _kind(config.torso),
        "seed": str(config.seed),
        "steps": f"{curve['step'].iloc[-1]:,.0f}",
        "last": f"{curve['value'].iloc[-1]:.3f}",
        "highest": f"{highest['value']:.3f}",
        "at step": f"{highest['step']:,.0f}",
        "steps/s": f"{speed:,.0f}",
    }


def _kind(torso: TorsoConfig) -> str:
    return torso.long_term if torso.kind == "transformer" else torso.kind


def _short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run's path without the folders that all share, so that a legend has room for it."""
    shared = os.path.commonpath([run.resolve().parent for run in runs])
    return {run: str(run.resolve().relative_to(shared)) for run in runs}


def run(config: CompareConfig) -> None:
    """Compare the runs, and check first that the curves can be written."""
    output = Path(config.output)
    make_writable(output.with_suffix(".png"))
    compare([Path(run) for run in config.runs], metric=config.metric, output=output)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    options = options_of(CompareConfig)
    command = Command(usage=USAGE, options=options, base=CompareConfig, positional="runs")
    run_command(argv, describe=lambda _: command, run=run)


if __name__ == "__main__":
    main()
