"""A run's metrics: `metrics.jsonl`, the loggers, and means over recent episodes.

The callers choose the metrics' names, such as `charts/episodic_return`, `losses/approx_kl`.
"""

import errno
import json
import math
import os
import statistics
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from mtxl_rl.tracking.files import atomic_write, explained_write_errors
from mtxl_rl.tracking.loggers import Logger, open_logger

METRICS_FILE = "metrics.jsonl"
WINDOW_SIZE = 100
"""Episodes over which means are taken."""
Row = dict[str, float | int | None]
_ADVICE = "earlier rows are kept; free space and resume, or choose another folder with run_dir="


class MetricsLogger:
    """Writes each row of metrics to `RUN_DIR/metrics.jsonl` and to the loggers, unbuffered.

    A row is one flat JSON object on one line, with "step" first, and NaN and infinities as null.
    If a write fails, the file is cut back to its whole lines. Only a killed process can leave an
    incomplete last line, which is dropped when the file is next opened.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        loggers: Sequence[str] = ("tensorboard",),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare to write.

        Args:
            run_dir: The run's folder.
            loggers: Names of `LOGGERS`.
            options: The run's options by dotted names, which the loggers show.
        """
        self.path = Path(run_dir) / METRICS_FILE
        self._names = [name for name in loggers if name != "none"]
        self._options = options or {}
        self._file: BinaryIO | None = None
        self._loggers: list[Logger] = []  # Opened at the first row.
        self._purge_step: int | None = None

    def __enter__(self) -> "MetricsLogger":
        with self._explained_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_file()
        try:
            with self._explained_errors():
                self._close_loggers()
        except OSError:
            if error is None:  # Otherwise the first error is the one to report.
                raise

    def log(self, metrics: Mapping[str, float | int], *, step: int) -> None:
        """Write one row. A process killed after this returns does not lose it.

        Raises:
            ValueError: A metric is not a number, or is named "step".
            OSError: The row cannot be written. Earlier rows are kept.
        """
        assert self._file is not None, "use MetricsLogger in a with statement"
        row = {name: _number(name, value) for name, value in metrics.items()}
        line = json.dumps({"step": step} | {name: _finite(value) for name, value in row.items()})
        with self._explained_errors():
            if not os.fstat(self._file.fileno()).st_nlink:
                raise OSError(errno.ENOENT, "it was deleted during the run")
            _append(self._file, f"{line}\n".encode())
            for logger in self._open_loggers():
                logger.log(row, step=step)

    def log_media(
        self,
        *,
        histograms: Mapping[str, NDArray[Any]],
        pictures: Mapping[str, Path],
        step: int,
    ) -> None:
        """Pass distributions of numbers, and .png and .gif files, to the loggers."""
        with self._explained_errors():
            for logger in self._open_loggers():
                for name, values in histograms.items():
                    logger.log_histogram(name, values, step=step)
                for name, path in pictures.items():
                    logger.log_picture(name, path, step=step)

    def truncate_after(self, step: int) -> None:
        """Remove the rows later than `step`, also from TensorBoard, before a run resumes there."""
        assert self._file is not None, "use MetricsLogger in a with statement"
        self._close_file()
        with self._explained_errors():
            self._close_loggers()
            lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _is_kept(line, step=step, path=self.path)]
        if len(kept) < len(lines):
            with atomic_write(self.path, advice=_ADVICE) as temporary:
                temporary.write_bytes(b"".join(kept))
        with self._explained_errors():
            self._open()
        self._purge_step = step + 1

    def _explained_errors(self) -> AbstractContextManager[None]:
        return explained_write_errors(self.path, advice=_ADVICE)

    def _open(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
        _drop_incomplete_line(self.path)
        self._file = self.path.open("ab", buffering=0)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _close_loggers(self) -> None:
        loggers, self._loggers = self._loggers, []
        for logger in loggers:
            logger.close()

    def _open_loggers(self) -> list[Logger]:
        if not self._loggers:
            self._loggers = [
                open_logger(
                    name, self.path.parent, options=self._options, purge_step=self._purge_step
                )
                for name in self._names
            ]
        return self._loggers


def read_rows(run_dir: Path | str) -> list[Row]:
    """Return the rows of a run's `metrics.jsonl`, without an incomplete last line.

    Raises:
        FileNotFoundError: The folder has no metrics.
        ValueError: A row is not a JSON object.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no {METRICS_FILE}; give a run's folder")
    try:
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        return [dict(json.loads(line)) for line in lines]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds a row that is not a JSON object: {error}") from error


class _Episode(NamedTuple):
    episode_return: float
    length: float
    success: float | None  # None where success is undefined.


class EpisodeWindow:
    """Means over the last `size` episodes that ended, in any environment.

    Episodes of a curriculum that are easier than the task (practice), and those in which a teacher
    took actions (led), have means of their own.
    """

    def __init__(self, *, size: int = WINDOW_SIZE) -> None:
        if size < 1:
            raise ValueError(f"size={size} episodes have no mean; give 1 or more")
        self._episodes: deque[_Episode] = deque(maxlen=size)
        self._practice: deque[_Episode] = deque(maxlen=size)
        self._led: deque[_Episode] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def is_full(self) -> bool:
        """Whether it holds `size` episodes."""
        return len(self._episodes) == self._episodes.maxlen

    def add(
        self,
        *,
        episode_return: float,
        episode_length: float | int,
        episode_success: float | None = None,
        is_practice: bool = False,
        is_led: bool = False,
    ) -> None:
        """Add an episode. `episode_success` is 0 or 1, or None where success is undefined."""
        episodes = self._practice if is_practice else self._episodes
        if is_led:
            episodes = self._led
        episodes.append(_Episode(episode_return, episode_length, episode_success))

    def means(self) -> dict[str, float]:
        """Return the means, as "charts/episodic_return"."""
        successes = [episode.success for episode in self._episodes if episode.success is not None]
        columns = {
            "charts/episodic_return": [episode.episode_return for episode in self._episodes],
            "charts/episodic_length": [episode.length for episode in self._episodes],
            "charts/success": successes,
            "charts/practice_return": [episode.episode_return for episode in self._practice],
            "teacher/led_return": [episode.episode_return for episode in self._led],
        }
        return {name: statistics.fmean(column) for name, column in columns.items() if column}

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes as lists of numbers, oldest first."""
        return {
            "episodes": [list(episode) for episode in self._episodes],
            "practice": [list(episode) for episode in self._practice],
            "led": [list(episode) for episode in self._led],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the episodes by those of another window, keeping the last `size`."""
        windows = {"episodes": self._episodes, "practice": self._practice, "led": self._led}
        for name, episodes in windows.items():
            episodes.clear()
            episodes.extend(_Episode(*episode) for episode in state[name])


def _number(name: str, value: object) -> float | int:
    if name == "step":
        raise ValueError('a metric is named "step", which every row has already; rename it')
    if type(value) is int:
        return value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the metric {name!r} is a {type(value).__name__}, not a number; reduce it to a float"
        ) from error


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _append(file: BinaryIO, line: bytes) -> None:
    """Write the whole line, or restore the file: a full disk accepts the part that fits."""
    start = file.seek(0, os.SEEK_END)
    try:
        remaining = memoryview(line)
        while remaining:
            remaining = remaining[file.write(remaining) :]
    except BaseException:
        file.truncate(start)
        raise


def _drop_incomplete_line(path: Path) -> None:
    """Cut the file after its last line end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _is_kept(line: bytes, *, step: int, path: Path) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        warnings.warn(f"dropped an unreadable line of {path}: {line[:80]!r}", stacklevel=4)
        return False
