"""Atomic file writes, and the lock on a run's folder."""

import errno
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

TEMPORARY_PREFIX = ".tmp."


@contextmanager
def atomic_write(
    path: Path, *, advice: str = "free space there, or choose another path"
) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, the file written there replaces `path`.

    The temporary file is in the same folder and has the same suffix. It is flushed to the disk
    before the rename, and the folder after it. If the block fails, `path` is unchanged and the
    temporary file is removed.

    Args:
        path: The file to write. Its folder is created if it is missing.
        advice: The end of the error message: what the user can do.

    Raises:
        OSError: The file cannot be written. The message names `path`.
    """
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    with explained_write_errors(path, advice=advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush_file(temporary)
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            # Also after KeyboardInterrupt. Renaming a hard link onto its own file keeps both names.
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def explained_write_errors(path: Path, *, advice: str) -> Iterator[None]:
    """Raise an OSError again as one sentence that names `path` and gives `advice`."""
    try:
        yield
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split()) or "the write failed"
        message = f"cannot write {path}: {reason}; {advice}"
        raise OSError(error.errno or errno.EIO, message) from error


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link `source`, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Create a run's folder if it is missing, and keep other processes out of it.

    The lock is on the folder itself, on Windows on a file `.lock` in it. It ends with the process,
    so a killed run can be resumed. On file systems without locks there is no lock.

    Raises:
        ValueError: Another process holds the lock, or `run_dir` is a file.
        OSError: The folder cannot be created.
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
            f"run_dir={run_dir} cannot be created: {error.strerror or error}; choose another one"
        ) from error
    with _folder_lock(run_dir):
        try:
            yield
        except BaseException:
            if is_new:  # Removes an empty folder only: a run that has written files is kept.
                with suppress(OSError):
                    run_dir.rmdir()
            raise


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":  # Windows cannot lock a folder.
        with _file_lock(folder):
            yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _in_use(folder) from error
    except OSError:
        pass  # Some network file systems have no locks.
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    """Lock the first byte of `.lock`, as Windows does it."""
    msvcrt: Any = importlib.import_module("msvcrt")
    path = folder / ".lock"
    with path.open("ab") as file:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise _in_use(folder) from error
        try:
            yield
        finally:
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    with suppress(OSError):
        path.unlink()


def _in_use(folder: Path) -> ValueError:
    return ValueError(
        f"run_dir={folder} is in use by another training process; stop that one first, or choose "
        "another run_dir"
    )


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where folders can be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
