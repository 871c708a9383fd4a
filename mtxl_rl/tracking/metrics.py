"""What a run writes down as it goes: `metrics.jsonl`, TensorBoard, and means over episodes.

Names are the field's (`episode/return`, `loss/policy`, `ppo/approx_kl`) and belong to the callers.
"""

import errno
import json
import math
import os
import statistics
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

METRICS_FILE = "metrics.jsonl"
Row = dict[str, float | int | None]


class MetricsLogger:
    """Writes every row of metrics to `RUN_DIR/metrics.jsonl` and to TensorBoard, at once.

    A row is one flat JSON object on one line, "step" first, NaN and infinities as null. A row
    that the disk refuses is taken back, so the file holds whole lines; only a kill can tear the
    last one, and it is dropped when the file is opened again.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self._file: BinaryIO | None = None
        self._writer: Any = None  # A SummaryWriter, which takes 2 seconds to import.
        self._purge_step: int | None = None

    def __enter__(self) -> "MetricsLogger":
        with _explained(self.path):
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
            with _explained(self.path):
                self._close_writer()
        except OSError:
            if error is None:  # Otherwise the first failure is the one to hear about.
                raise

    def log(self, metrics: Mapping[str, float | int], *, step: int) -> None:
        """Write one row; a kill after this returns does not lose it.

        Raises:
            ValueError: A metric is no number or is named "step".
            OSError: The disk is full; the rows before are kept.
        """
        assert self._file is not None, "use MetricsLogger in a with statement"
        row = {name: _number(name, value) for name, value in metrics.items()}
        line = json.dumps({"step": step} | {name: _finite(value) for name, value in row.items()})
        with _explained(self.path):
            _append(self._file, f"{line}\n".encode())
            writer = self._tensorboard()
            for name, value in row.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    def truncate_after(self, step: int) -> None:
        """Forget the rows later than `step`, here and in TensorBoard: the run goes on from there.

        The rows that stay are copied to a new file which then replaces the old one, so a kill
        in between loses none of them.
        """
        assert self._file is not None, "use MetricsLogger in a with statement"
        self._close_file()
        with _explained(self.path):
            self._close_writer()
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _is_kept(line, step=step, path=self.path)]
            if len(kept) < len(lines):
                replace_file(self.path, b"".join(kept))
            self._open()
        self._purge_step = step + 1

    def _open(self) -> None:
        _drop_torn_line(self.path)
        self._file = self.path.open("ab", buffering=0)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _tensorboard(self) -> Any:  # noqa: ANN401
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path.parent), purge_step=self._purge_step)
        return self._writer


def read_rows(run_dir: Path | str) -> list[Row]:
    """The rows of a run's `metrics.jsonl`; a last one that is still being written is left out.

    Raises:
        FileNotFoundError: the folder has no metrics.
        ValueError: a row is no JSON object.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no {METRICS_FILE}; give the folder of a run")
    *lines, _ = path.read_text().split("\n")
    try:
        return [dict(json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a row that is no JSON object: {error}") from error


class _Episode(NamedTuple):
    episode_return: float
    length: float
    success: float | None


class EpisodeWindow:
    """Means over the last `size` episodes that ended, whichever environment they ended in."""

    def __init__(self, *, size: int = 100) -> None:
        if size < 1:
            raise ValueError(f"size={size} episodes have no mean; give 1 or more")
        self._episodes: deque[_Episode] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def is_full(self) -> bool:
        """Whether the means are over `size` episodes."""
        return len(self._episodes) == self._episodes.maxlen

    def add(
        self,
        *,
        episode_return: float,
        episode_length: float | int,
        episode_success: float | None = None,
    ) -> None:
        """Count an episode; `episode_success` is 0 or 1, or None where success is undefined."""
        self._episodes.append(_Episode(episode_return, episode_length, episode_success))

    def means(self) -> dict[str, float]:
        """Return `episode/return`, `episode/length` and `episode/success`, those that are known."""
        successes = [episode.success for episode in self._episodes if episode.success is not None]
        columns = {
            "episode/return": [episode.episode_return for episode in self._episodes],
            "episode/length": [episode.length for episode in self._episodes],
            "episode/success": successes,
        }
        return {name: statistics.fmean(column) for name, column in columns.items() if column}

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes as plain numbers, oldest first."""
        return {"episodes": [list(episode) for episode in self._episodes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the episodes of another window; of more than `size`, the last ones."""
        self._episodes.clear()
        self._episodes.extend(_Episode(*episode) for episode in state["episodes"])


def _number(name: str, value: object) -> float | int:
    if name == "step":
        raise ValueError('a metric is named "step", which is the step of the row; rename it')
    if type(value) is int:
        return value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the metric {name!r} is a {type(value).__name__} and not one number; "
            "reduce it to a float first"
        ) from error


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _append(file: BinaryIO, line: bytes) -> None:
    """Write the whole line or leave the file as it was; a full disk writes the part that fits."""
    start = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.truncate(start)
        raise


def _drop_torn_line(path: Path) -> None:
    """Cut what follows the last line end: a killed process was writing it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _is_kept(line: bytes, *, step: int, path: Path) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        warnings.warn(f"dropped an unreadable line of {path}: {line[:80]!r}", stacklevel=4)
        return False


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into one sentence that says what to do; the errno stays."""
    try:
        yield
    except OSError as error:
        message = (
            f"cannot write the metrics to {path}: {error.strerror or error}; the rows before are "
            "kept; free space and resume, or choose another folder with run_dir="
        )
        raise OSError(error.errno or errno.EIO, message) from error
