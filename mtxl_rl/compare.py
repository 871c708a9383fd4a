"""Compare runs: `python -m mtxl_rl.compare RUN RUN ...`, a table and the learning curves."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from mtxl_rl.config import load_config
from mtxl_rl.evaluation.report import curve, draw_curves, save_figure
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
        FileNotFoundError: a folder holds no run.
        ValueError: no row of a run has the metric.
    """
    table = Table(title=metric, title_justify="left")
    for column in (
        "run",
        "env",
        "memory",
        "seed",
        "steps",
        "last",
        "highest",
        "at step",
        "steps/s",
    ):
        table.add_column(column, justify="left" if column in ("run", "env", "memory") else "right")
    names, lines = _short_names(runs), {}
    for run in runs:
        config, rows = load_config(run), read_rows(run)
        line = curve(rows, metric)
        if not line.size:
            known = sorted({key for row in rows for key in row})
            raise ValueError(f"{run} has no {metric}; its metrics are {', '.join(known)}")
        highest = int(line[:, 1].argmax())
        speed = float(np.median([row["time/env_steps_per_second"] or 0.0 for row in rows]))
        table.add_row(
            str(run), config.env.name, _kind(config.torso), str(config.seed),
            f"{line[-1, 0]:,.0f}", f"{line[-1, 1]:.3f}", f"{line[highest, 1]:.3f}",
            f"{line[highest, 0]:,.0f}", f"{speed:,.0f}",
        )  # fmt: skip
        lines[names[run]] = [line]
    show(table)
    figure = draw_curves({metric: lines}, labels={metric: metric})
    save_figure(figure, output)
    say(f"curves: {output}.png, {output}.svg")


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
