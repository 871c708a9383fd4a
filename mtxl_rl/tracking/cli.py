"""Output, one-sentence error messages and stop requests of the command lines."""

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
    """Print one line without wrapping it: a wrapped path cannot be copied."""
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
        message = "; ".join([str(error), *getattr(error, "__notes__", [])])
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            message = error.strerror  # Without the errno that str() prepends.
        if isinstance(error, YAMLError):
            message = f"not valid YAML: {' '.join(message.split())}"
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(1) from None


def make_writable(path: Path) -> None:
    """Create the folder of a file and check that it is writable, before hours of work.

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
        reason = error.strerror or str(error)
        raise ValueError(f"{path} cannot be written: {reason}; choose another place") from error


@contextmanager
def stop_requests(*, collect_all: bool = False, announce: bool = True) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; a loop ends when the list is not empty.

    Args:
        collect_all: collect later signals too, for a caller that forwards them; otherwise a second
            signal ends the program immediately.
        announce: print a line at the first signal.
    """
    requests: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if requests and not collect_all:
            _exit_immediately(number)
        requests.append(number)
        if announce and len(requests) == 1:
            os.write(2, b"\nStopping once the work is saved. Press Ctrl-C again to quit now.\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _exit_immediately(number: int) -> None:
    """Show the cursor again and exit without any cleanup."""
    show_cursor()
    os._exit(128 + number)


def show_cursor() -> None:
    """Show the terminal's cursor, which a killed process leaves hidden."""
    if sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)
