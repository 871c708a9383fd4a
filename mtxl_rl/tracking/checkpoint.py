"""Checkpoints on disk: written whole or not at all, read without running code.

A run keeps `RUN_DIR/checkpoints/step_<12 digits>.pt`, the last few of them, and `best.pt`, the one
with the highest score so far. What a state means is its owner's business: this module sees a tree.
"""

import errno
import io
import math
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Never

import torch

FORMAT = "mtxl_rl.tracking.checkpoint"
VERSION = 1

_FOLDER = "checkpoints"
_BEST = "best.pt"
_STEP_FILE = re.compile(r"step_(\d{12})\.pt")
_PLAIN = (str, float, bool, type(None))
# torch's weights-only reader knows integers of at most 255 bytes.
_INTEGER_BITS = 8 * 255 - 1


class Header(NamedTuple):
    """What a checkpoint says about itself: the step it was taken at and the score it was given."""

    step: int
    score: float | None


def save(
    run_dir: Path | str,
    state: dict[str, Any],
    *,
    step: int,
    score: float | None,
    keep_last: int = 3,
) -> Path:
    """Write `RUN_DIR/checkpoints/step_<step>.pt` and return its path.

    The file appears under its name only once all of it is on the disk, so a run killed at any
    moment leaves whole checkpoints. Afterwards the oldest are removed until `keep_last` remain.

    Args:
        run_dir: Folder of the run; made if missing.
        state: Tensors, str, int, float, bool and None in lists, tuples and dicts; keys are str,
            or int as in the state of an optimizer.
        step: Environment steps taken so far; the name of the file.
        score: The higher, the better. Above that of `best.pt` it makes this file the new best.pt,
            which carries its score in itself, so a resume knows it. None, NaN and inf never do.
        keep_last: How many checkpoints to keep beside best.pt, at least 1.

    Raises:
        ValueError: `state` holds what could not be read back, or the folder holds later steps.
        OSError: The disk is full or the folder cannot be written.
    """
    _check_request(step=step, keep_last=keep_last)
    _check_state(state, where="state")
    folder = Path(run_dir) / _FOLDER
    path = folder / f"step_{step:012d}.pt"
    _check_no_later(folder, step=step)
    buffer = io.BytesIO()
    score = None if score is None else float(score)  # A NumPy float could not be read back.
    header = {"format": FORMAT, "version": VERSION, "step": step, "score": score}
    torch.save({**header, "state": state}, buffer)
    # Not getbuffer(): a view that an exception keeps alive crashes CPython 3.12 as it exits.
    content = buffer.getvalue()
    with _explained(path, size=len(content)):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with _replacing(path) as temporary:
            _write(temporary, content)
        if _is_best(folder / _BEST, score=score):
            with _replacing(folder / _BEST) as temporary:
                _link(path, temporary)
        for old in _step_files(folder)[keep_last:]:
            old.unlink(missing_ok=True)
    return path


def load(
    path: Path | str, *, which: str = "latest", map_location: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return the state stored in a checkpoint file, or in one of a run's checkpoints.

    Args:
        path: A `.pt` file, or the folder of a run.
        which: In a run's folder, "latest" or "best". The latest that cannot be read is an error
            and never a silent step back.
        map_location: The device to put the tensors on.

    Raises:
        FileNotFoundError: There is no such file, or no checkpoint in the folder.
        ValueError: The file is damaged, is no checkpoint of ours, or is too new.
    """
    torch.empty(0, device=map_location)  # A device that is missing has an error of its own.
    chosen = find(path, which=which)
    try:
        document = _read(chosen, map_location=map_location)
    except ValueError as error:
        older = None if chosen == Path(path) else _newest_readable(chosen)
        if older is None:
            raise
        raise ValueError(
            f"{error}; {older} is intact and can be given instead (to train on from it, with "
            "run_dir=NEW_FOLDER)"
        ) from error
    state: dict[str, Any] = document["state"]
    return state


def find(path: Path | str, *, which: str = "latest") -> Path:
    """Return the checkpoint file that `load` would open, without reading it."""
    if which not in ("latest", "best"):
        raise ValueError(f"which={which!r} is not a checkpoint of a run; choose 'latest' or 'best'")
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; give a checkpoint file (.pt) or the folder of a run"
        )
    folder = path / _FOLDER
    found = [folder / _BEST] if which == "best" else _step_files(folder)
    if not found or not found[0].is_file():
        way_out = "give the folder of a run that saved one"
        if which == "best":
            way_out = "use which='latest'"
        elif (folder / _BEST).is_file():
            way_out = f"{folder / _BEST} can be given instead"
        raise FileNotFoundError(f"{path} holds no {which} checkpoint in {_FOLDER}/; {way_out}")
    return found[0]


def latest(run_dir: Path | str) -> Path | None:
    """Return the newest checkpoint of a run, or None if it has none yet; it is not read."""
    return next(iter(_step_files(Path(run_dir) / _FOLDER)), None)


def step_of(path: Path) -> int:
    """Return the step in the name of a file that `latest` found."""
    match = _STEP_FILE.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def read_header(path: Path | str) -> Header:
    """Return the step and score of a checkpoint file without loading its tensors."""
    document = _read(Path(path), map_location="meta")
    return Header(step=document["step"], score=document["score"])


def truncate_after(run_dir: Path | str, *, step: int) -> list[Path]:
    """Remove the checkpoints later than `step` and return their paths; best.pt stays.

    For a run that goes back to an earlier checkpoint and goes on from there: the later ones
    belong to a course that was given up, and "latest" would find them.
    """
    later = [path for path in _step_files(Path(run_dir) / _FOLDER) if step_of(path) > step]
    for path in later:
        path.unlink(missing_ok=True)
    return later


def _check_request(*, step: int, keep_last: int) -> None:
    if not 0 <= step < 10**12:
        raise ValueError(f"step={step} does not fit a file name; give 0 to 999,999,999,999")
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last} would keep no checkpoint; give 1 or more")


def _check_no_later(folder: Path, *, step: int) -> None:
    newest = latest(folder.parent)
    if newest is not None and step_of(newest) > step:
        raise ValueError(
            f"{newest} is later than step={step}, so this run would not be the latest in its own "
            "folder; resume from it, call truncate_after, or choose another folder with run_dir="
        )


def _check_state(value: Any, *, where: str) -> None:  # noqa: ANN401 - any value is what it judges
    """Raise for the first value that `torch.load(weights_only=True)` could not give back."""
    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter) or kind in _PLAIN:
        return
    if kind is int:
        if value.bit_length() > _INTEGER_BITS:
            raise ValueError(f"{where} is an integer of {value.bit_length()} bits; store it as str")
    elif kind in (dict, OrderedDict):
        for key, item in value.items():
            _check_key(key, where=where)
            _check_state(item, where=f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_state(item, where=f"{where}[{index}]")
    else:
        raise ValueError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold; "
            "convert it to a tensor, str, int, float, bool, None, list, tuple or dict"
        )


def _check_key(key: object, *, where: str) -> None:
    if type(key) not in (str, int):
        raise ValueError(
            f"{where} has the key {key!r} of type {type(key).__name__}, which a checkpoint cannot "
            "hold; use str or int"
        )


def _step_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if _STEP_FILE.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def _newest_readable(path: Path) -> Path | None:
    """The newest checkpoint beside `path`, and other than it, that can be read; else the best."""
    for other in [*_step_files(path.parent), path.parent / _BEST]:
        if other == path:
            continue
        try:
            _read(other, map_location="meta")
        except (ValueError, OSError):
            continue
        return other
    return None


def _is_best(best: Path, *, score: float | None) -> bool:
    if score is None or not math.isfinite(score):
        return False
    try:
        held = read_header(best).score
    except (FileNotFoundError, ValueError):
        return True  # None yet, or one that nobody could load.
    return held is None or score > held


@contextmanager
def _explained(path: Path, *, size: int) -> Iterator[None]:
    """Turn an OSError into one sentence that says what to do; the errno stays."""
    try:
        yield
    except OSError as error:
        message = (
            f"cannot write the checkpoint {path} ({size:,} bytes): {error.strerror or error}; "
            "earlier checkpoints are intact; free space, or choose another folder with run_dir="
        )
        raise OSError(error.errno or errno.EIO, message) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there then takes its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        # Also after KeyboardInterrupt. Replacing a file by its own hard link leaves both names.
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.glob(".*.pt.tmp"):
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """Give `source` a second name, or copy it where the file system knows no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where folders can be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, *, map_location: torch.device | str) -> dict[str, Any]:
    """Return the whole document of a checkpoint file, header included."""
    _check_intact(path)
    try:
        document = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse(path, "holds Python objects, which are not loaded since they could run code", error)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's readers raise whatever a foreign file makes them trip over
        _refuse(path, "is not a file of torch.save", error)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse(path, "is a file of torch.save but not a checkpoint of mtxl_rl", None)
    version = document.get("version")
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version} of the checkpoint format and this mtxl_rl reads version "
            f"{VERSION}; install the mtxl_rl that wrote it, or a newer one"
        )
    if not {"step", "score", "state"} <= document.keys():
        _refuse(path, "lacks a part of a checkpoint", None)
    return document


def _check_intact(path: Path) -> None:
    """Check the file's own checksums; torch.load does not, and returns flipped bits as weights."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises whatever random bytes make it trip over
        # A wild offset is EINVAL; any other errno is the machine's failure, not the file's.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        size = path.stat().st_size
        what = f"is damaged or not a checkpoint ({size:,} bytes, no whole archive in them)"
        _refuse(path, what, error)
    if damaged is not None:
        _refuse(path, f"is damaged (the checksum of {damaged} does not match)", None)


def _refuse(path: Path, what: str, cause: Exception | None) -> Never:
    raise ValueError(f"{path} {what}; give a checkpoint that mtxl_rl.train wrote") from cause
