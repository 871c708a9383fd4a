"""A run's record in `RUN_DIR/run.json`: where each of its parts was started, how it ended."""

import json
import platform
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtxl_rl.tracking.files import write_text

RECORD_FILE = "run.json"
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def run_record(
    run_dir: Path, *, step: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Any]]:
    """Append an entry to `RUN_DIR/run.json`, and complete it when the block ends.

    The file is a list with an entry for the start and for each resume. "end" and "outcome" are null
    while the run continues. They stay null if it is killed.

    Args:
        run_dir: The run's folder.
        step: The step it starts at.
        rank: The process; only the first one, 0, writes the file.
        world_size: Processes of the run.

    Yields:
        The entry. The caller sets "outcome" and "last_step"; an error sets "outcome" itself.
    """
    entry: dict[str, Any] = {
        "start": _now(),
        "end": None,
        "outcome": None,
        "first_step": step,
        "last_step": None,
        "command": shlex.join(sys.orig_argv),
        "mtxl_rl": version("mtxl_rl"),
        "commit": commit(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "world_size": world_size,
    }
    if rank > 0:
        yield entry
        return
    path, entries = run_dir / RECORD_FILE, [*read_record(run_dir), entry]
    _write(path, entries)
    try:
        yield entry
    except BaseException as error:
        message = "; ".join([str(error), *getattr(error, "__notes__", [])])
        entry |= {"outcome": f"{type(error).__name__}: {message}", "end": _now()}
        with suppress(OSError):  # The first error is the one to report.
            _write(path, entries)
        raise
    entry["end"] = _now()
    _write(path, entries)


def outcome(signal_number: int) -> str:
    """The run's outcome, from the signal that stopped it, or 0."""
    if not signal_number:
        return "finished"
    return f"stopped by {signal.Signals(signal_number).name}"


def read_record(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's record, oldest first; empty where there is no record.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / RECORD_FILE
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it, or restore it") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is not a list of JSON objects; delete it, or restore it")
    return entries


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    write_text(path, f"{json.dumps(entries, indent=1)}\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of the library's checkout, with -dirty after changes; None if installed."""
    if not (_PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(_PACKAGE.parent), "describe", "--always", "--dirty",
               "--abbrev=40", "--exclude=*"]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
