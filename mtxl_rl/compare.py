"""Compare runs: `python -m mtxl_rl.compare RUN RUN ...`, a table and the learning curves."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mtxl_rl.config import load_config
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.tracking.cli import make_writable, one_sentence_errors, say, show
from mtxl_rl.tracking.metrics import read_rows

USAGE = """\
python -m mtxl_rl.compare RUN RUN ... [metric=episode/return] [output=compare]

  RUN      folder of a run
  metric   which column of metrics.jsonl to compare
  output   the curves are written to OUTPUT.png and OUTPUT.svg
"""


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
    speed = float(np.median([row["time/env_steps_per_second"] or 0.0 for row in rows]))
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return
    with one_sentence_errors():
        options = dict(part.split("=", 1) for part in given if "=" in part)
        flags = [part for part in given if part.startswith("-")]
        if flags:
            raise ValueError(f"{flags[0]!r} is no option; choose metric= or output=")
        runs = [Path(part) for part in given if "=" not in part]
        unknown = options.keys() - {"metric", "output"}
        if unknown:
            raise ValueError(f"option {min(unknown)!r} is unknown; choose metric= or output=")
        if not runs:
            raise ValueError("no run was given; name the folders of the runs to compare")
        metric = options.get("metric", "episode/return")
        output = Path(options.get("output", "compare"))
        make_writable(output.with_suffix(".png"))
        compare(runs, metric=metric, output=output)


if __name__ == "__main__":
    main()
