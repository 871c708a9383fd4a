"""The loggers of metrics: TensorBoard, Weights & Biases, and Trackio."""

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from mtxl_rl.tracking.run_record import read_record

_EVENT_FILES = "events.out.tfevents"
LOGGERS = ("tensorboard", "wandb", "trackio", "none")


@runtime_checkable
class Logger(Protocol):
    """One place where metrics are shown."""

    def log(self, metrics: Mapping[str, float | int], *, step: int) -> None:
        """Log numbers."""

    def log_histogram(self, name: str, values: NDArray[Any], *, step: int) -> None:
        """Log the distribution of some numbers."""

    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Log a .png, or a .gif as a video."""

    def close(self) -> None:
        """Write what is not written yet."""


def check_logger_names(names: Sequence[str]) -> None:
    """Check the option `logger`.

    Raises:
        ValueError: a name is unknown, or none is combined with others.
    """
    unknown = set(names) - set(LOGGERS)
    if unknown or not names or ("none" in names and len(set(names)) > 1):
        raise ValueError(
            f"logger={','.join(names)} must be none, or one or more of tensorboard, wandb and "
            "trackio, as in logger=tensorboard,wandb"
        )


def check_loggers_installed(names: Sequence[str]) -> None:
    """Import the loggers' packages, before any work.

    Raises:
        ImportError: one is not installed.
    """
    for name in names:
        try:
            if name not in ("none", "tensorboard"):  # A dependency, which is slow to import.
                importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"logger={name} needs the package {error.name}: pip install 'mtxl_rl[{name}]'"
            ) from error


def open_logger(
    name: str, run_dir: Path, *, options: Mapping[str, Any], purge_step: int | None
) -> Logger:
    """Open one of `LOGGERS`.

    Args:
        name: Its name.
        run_dir: The run's folder.
        options: The run's options by dotted names: the hyperparameters.
        purge_step: TensorBoard removes what it has from this step on; None: nothing.
    """
    if name == "tensorboard":
        return TensorBoard(run_dir, options=options, purge_step=purge_step)
    return Wandb(name, run_dir, options=options)


def _number_event_files(run_dir: Path) -> None:
    """Rename a run's event files so that TensorBoard reads them before those to come.

    TensorBoard reads files in the order of their names, which begin with the second in which they
    were opened. A clock that was set back, or a resume within a second, would change the order.
    """
    for index, path in enumerate(sorted(run_dir.glob(f"{_EVENT_FILES}.*"))):
        _, _, opener = path.name.removeprefix(f"{_EVENT_FILES}.").partition(".")
        path.rename(run_dir / f"{_EVENT_FILES}.{index:010d}.{opener}")


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(
        self, run_dir: Path, *, options: Mapping[str, Any], purge_step: int | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # Takes 2 seconds.
        from torch.utils.tensorboard.summary import hparams

        _number_event_files(run_dir)
        self._writer: Any = SummaryWriter(str(run_dir), purge_step=purge_step)
        if options:
            step = purge_step or 0
            table = [f"|{name}|{value}|" for name, value in options.items()]
            text = "\n".join(["|option|value|", "|-|-|", *table])
            self._writer.add_text("hyperparameters", text, step)
            plain = {key: v if isinstance(v, int | float) else str(v) for key, v in options.items()}
            for summary in hparams(plain, {"charts/episodic_return": 0.0}):
                self._file_writer().add_summary(summary)

    def log(self, metrics: Mapping[str, float | int], *, step: int) -> None:
        """Log numbers, and write them to the disk."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_histogram(self, name: str, values: NDArray[Any], *, step: int) -> None:
        """Log the distribution of some numbers."""
        self._writer.add_histogram(name, values, step)

    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Log an image; TensorBoard plays a .gif."""
        from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]
            Summary,
        )

        image = Summary.Image(encoded_image_string=path.read_bytes())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._file_writer().add_summary(summary, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _file_writer(self) -> Any:  # noqa: ANN401
        return self._writer.file_writer


class Wandb:
    """Weights & Biases, or Trackio, which has the same calls.

    A resumed run continues its page. The project is mtxl_rl; wandb reads WANDB_PROJECT.
    """

    def __init__(self, name: str, run_dir: Path, *, options: Mapping[str, Any]) -> None:
        self._module = importlib.import_module(name)
        arguments: dict[str, Any] = {"project": "mtxl_rl"}
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", "mtxl_rl")
            arguments = {"project": project, "id": _run_id(run_dir), "dir": str(run_dir)}
        self._module.init(name=str(run_dir), config=dict(options), resume="allow", **arguments)

    def log(self, metrics: Mapping[str, float | int], *, step: int) -> None:
        """Log numbers."""
        self._module.log(dict(metrics), step=step)

    def log_histogram(self, name: str, values: NDArray[Any], *, step: int) -> None:
        """Log the distribution of some numbers, if the package has histograms."""
        if hasattr(self._module, "Histogram"):
            self._module.log({name: self._module.Histogram(values)}, step=step)

    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Log a .png as an image, a .gif as a video."""
        picture = (
            self._module.Video(str(path), format="gif")
            if path.suffix == ".gif"
            else self._module.Image(str(path))
        )
        self._module.log({name: picture}, step=step)

    def close(self) -> None:
        """Finish the upload."""
        self._module.finish()


def _run_id(run_dir: Path) -> str:
    """A run's identifier, equal for all its parts and different for another run in the folder."""
    record = read_record(run_dir)
    start = record[0]["start"] if record else ""
    return hashlib.sha256(f"{run_dir.resolve()} {start}".encode()).hexdigest()[:16]
