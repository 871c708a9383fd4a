"""Output, one-sentence error messages and stop requests of the command lines."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from yaml import YAMLError  # type: ignore[import-untyped]

console = Console()
PARENT = "MTXL_RL_PARENT"
"""The variable in which a program that runs commands passes its process number to them."""
_NO_LIMIT = 10_000
_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = {
    *sys.stdlib_module_names, "torch", "numpy", "yaml", "hydra", "omegaconf", "safetensors",
    "tensorboard", "rich", "imageio", "matplotlib", "pandas",
}  # fmt: skip
_SHOW_CURSOR = b"\x1b[?25h"


def print_line(sentence: str) -> None:
    """Print one line without wrapping it: a wrapped path cannot be copied."""
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Print nothing in this block, if `is_quiet`."""
    before, console.quiet = console.quiet, console.quiet or is_quiet
    try:
        yield
    finally:
        console.quiet = before


def show(table: Table) -> None:
    """Print a table with complete names: folded in a terminal, at full width elsewhere."""
    for column in table.columns:
        column.overflow = "fold"
    wide = console if console.is_terminal else Console(width=_NO_LIMIT)
    wide.print(table)


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with one sentence and exit code 1 for an error that this library raised.

    Errors of other code, such as an environment, keep their traceback. MTXL_RL_TRACEBACK=1 shows it
    for all.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError, RuntimeError, YAMLError) as error:
        if os.environ.get("MTXL_RL_TRACEBACK") or is_foreign(error):
            raise
        sys.stderr.write(_message(error))
        raise SystemExit(1) from None


def is_foreign(error: BaseException) -> bool:
    """Whether code of others raised the error, such as an environment's or a callback's.

    That is code which this library called, and which is not a library for files, tensors or
    options.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    called = list(takewhile(lambda frame: not _is_of_package(frame), reversed(frames)))
    modules = {frame.f_globals.get("__name__", "").partition(".")[0] for frame in called}
    return not modules <= _LIBRARIES


def _is_of_package(frame: FrameType) -> bool:
    # By the file: a command's module is called __main__.
    return Path(frame.f_code.co_filename).is_relative_to(_PACKAGE)


def _message(error: Exception) -> str:
    """The error as one sentence, below the notes of several lines, as a worker's traceback."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        message = error.strerror  # Without the errno that str() prepends.
    if isinstance(error, YAMLError):
        message = f"not valid YAML: {message}"
    message = " ".join(message.split())  # An option's value may have several lines.
    notes = getattr(error, "__notes__", [])
    blocks = [note.rstrip() + "\n" for note in notes if "\n" in note.strip()]
    sentences = [note for note in notes if "\n" not in note.strip()]
    return "".join([*blocks, f"error: {'; '.join([message, *sentences])}\n"])


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
def stop_requests(
    *, collect_all: bool = False, announce: bool = True, requests: list[int] | None = None
) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; a loop ends when the list is not empty.

    A second signal ends the program immediately, unless both are SIGTERM: at the end of a job a
    process can receive one from Slurm and one from torchrun. After a second Ctrl-C torchrun sends
    SIGTERM.

    Args:
        collect_all: collect later signals too, for a caller that forwards them.
        announce: print a line at the first signal.
        requests: the list, if the caller adds requests of its own. Outside of the main thread,
            where Python delivers no signals, there are no others.
    """
    stop = list[int]() if requests is None else requests
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stop and signal.SIGINT in (stop[0], number) and not collect_all:
            _exit_immediately(number)
        stop.append(number)
        if announce and len(stop) == 1:
            os.write(2, b"\nStopping once the work is saved. Press Ctrl-C again to quit now.\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stop_with_parent(parent: int) -> None:
    """Send this process SIGTERM when its parent, a process number, has ended.

    So it saves and stops after a kill of the program that started it, instead of continuing alone.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _exit_immediately(number: int) -> None:
    """Show the cursor again and exit without any cleanup."""
    show_cursor()
    os._exit(128 + number)


def show_cursor() -> None:
    """Show the terminal's cursor, which a killed process leaves hidden."""
    if sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)
