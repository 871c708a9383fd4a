"""What the command lines share: one-sentence mistakes, Ctrl-C that saves, a folder for each run."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from yaml import YAMLError  # type: ignore[import-untyped]

console = Console()
_NO_LIMIT = 10_000
_SHOW_CURSOR = b"\x1b[?25h"


def say(sentence: str) -> None:
    """Print one line, however long: a path that is cut cannot be copied."""
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def show(table: Table) -> None:
    """Print a table with complete names: folded in a terminal, at full width elsewhere."""
    for column in table.columns:
        column.overflow = "fold"
    wide = console if console.is_terminal else Console(width=_NO_LIMIT)
    wide.print(table)


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with one sentence and exit code 1; MTXL_RL_TRACEBACK=1 shows where."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError, RuntimeError, YAMLError) as error:
        if os.environ.get("MTXL_RL_TRACEBACK"):
            raise
        said = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            said = error.strerror  # Without the number that str() puts in front.
        if isinstance(error, YAMLError):
            said = f"no YAML: {' '.join(said.split())}"
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(1) from None


def make_writable(path: Path) -> None:
    """Make the folder of a file that is to be written, and try: before hours of work, not after.

    Raises:
        ValueError: nothing can be written there, or `path` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    trial = path.with_name(f".{path.name}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{path} cannot be written: {why}; choose another place") from error


@contextmanager
def stop_requests(*, collect_all: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, for a loop that ends when there is one.

    Args:
        collect_all: collect later ones too, for a caller who passes them on; else a second one
            ends the program immediately.
    """
    requests: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if requests and not collect_all:
            _stop_at_once(number)
        requests.append(number)
        if len(requests) == 1:
            os.write(2, b"\nStopping once the work is saved. Press Ctrl-C again to quit now.\n")

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _stop_at_once(number: int) -> None:
    """Leave nothing behind but a visible cursor: nothing else runs any more."""
    if sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)
    os._exit(128 + number)
