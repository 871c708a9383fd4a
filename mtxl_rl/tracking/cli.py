"""What the command lines share: one-sentence mistakes, Ctrl-C that saves, a folder for each run."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from yaml import YAMLError  # type: ignore[import-untyped]

if sys.platform != "win32":
    import fcntl

console = Console()
_NO_LIMIT = 10_000
_SHOW_CURSOR = b"\x1b[?25h"


def say(sentence: str) -> None:
    """Print one line, however long: a path that is cut cannot be copied."""
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def show(table: Table) -> None:
    """Print a table whose names are whole: folded in a terminal, and as wide as it is elsewhere."""
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


def command_line(
    arguments: Sequence[str] | None, *, usage: Callable[[], str], run: Callable[[list[str]], object]
) -> None:
    """A program's `main`: its usage where -h or --help is among the arguments, else `run` of them.

    Args:
        arguments: None: the process's own.
        usage: what is printed.
        run: the program; its mistakes become one sentence.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(usage())
        return
    with one_sentence_errors():
        run(given)


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
def claimed(run_dir: Path) -> Iterator[None]:
    """Make the folder of a run where it is missing, and keep every other process out of it.

    The lock is on the folder itself: it leaves no file behind, and ends with the process however
    that ends, so that a killed run can go on. A system without such locks lets all in.

    Raises:
        ValueError: another process has claimed it, or it is a file.
        OSError: it cannot be made.
    """
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"run_dir={run_dir} is a file or lies below one; give the name of a folder"
        ) from error
    except OSError as error:
        raise OSError(
            f"run_dir={run_dir} cannot be made: {error.strerror or error}; choose another run_dir"
        ) from error
    with _locked(run_dir):
        try:
            yield
        except BaseException:
            if is_new:  # Only an empty one goes: a run that has begun stays.
                with suppress(OSError):
                    run_dir.rmdir()
            raise


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    if sys.platform == "win32":  # It cannot lock a folder.
        yield
        return
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"run_dir={run_dir} is in use by a training that is under way; choose another run_dir, "
            "or stop that one first"
        ) from error
    except OSError:
        pass  # Some network file systems have no locks.
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def stop_requests(*, collect_all: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, for a loop that ends when there is one.

    Args:
        collect_all: collect later ones too, for a caller who passes them on; else a second one
            ends the program at once.
    """
    requests: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if requests and not collect_all:
            _stop_at_once(number)
        requests.append(number)
        if len(requests) == 1:
            os.write(2, b"\nstopping when what is under way is saved; once more stops at once\n")

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
