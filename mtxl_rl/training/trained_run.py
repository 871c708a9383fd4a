"""The result of `mtxl_rl.train`: the run's folder, its metrics, and its agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtxl_rl.agent import Agent
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.tracking.run_record import read_record


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A training run that ended."""

    run_dir: Path
    """The folder with its options, metrics, checkpoints and weights."""
    outcome: str
    """finished, or why a callback stopped it."""
    metrics: Mapping[str, float | int | None]
    """The last row of its metrics, with "step"."""
    best: checkpoint.Header | None
    """Step and score of the best checkpoint; None before one was scored."""

    @classmethod
    def read(cls, run_dir: Path) -> "TrainedRun":
        """Read a run's folder."""
        rows = read_rows(run_dir)
        return cls(
            run_dir=run_dir,
            outcome=str(read_record(run_dir)[-1]["outcome"]),
            metrics=rows[-1] if rows else {},
            best=checkpoint.read_best_header(run_dir),
        )

    @cached_property
    def agent(self) -> Agent:
        """The trained agent: `Agent.load(run_dir)`."""
        return Agent.load(self.run_dir)
