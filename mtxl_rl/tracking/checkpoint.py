"""Checkpoints of a training run, written atomically and read without running code.

A run keeps its last few checkpoints in `RUN_DIR/checkpoints/step_<12 digits>.pt`, and the one with
the highest score in `best.pt`.
"""

import errno
import io
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Never, TypedDict

import torch

from mtxl_rl.tracking.files import TEMPORARY_PREFIX, atomic_write, link_or_copy

FORMAT = "mtxl_rl.tracking.checkpoint"
VERSION = 1

_FOLDER = "checkpoints"
_BEST = "best.pt"
_STEP_FILE = re.compile(r"step_(\d{12})\.pt")
_WHICH = ("latest", "best")


class TrainingState(TypedDict):
    """Everything that the next iteration of a training run depends on.

    Values are tensors, str, int, float, bool and None, in lists, tuples and dicts.
    """

    step: int
    """Environment steps taken."""
    agent: dict[str, Any]
    """`PPO.state_dict()`: policy, average of its weights, optimizer, generator."""
    generator: torch.Tensor
    """State of the generator of action noise."""
    episodes: dict[str, Any]
    """`EpisodeWindow.state_dict()`."""
    collector: dict[str, Any]
    """`Collector.state_dict()`: tensors with a row for each environment of the run."""
    env: dict[str, Any] | None
    """State of the environments, with a row for each; None if they cannot be saved."""
    description: str
    """Options and spaces of the agent as JSON: see `mtxl_rl.saved_agent`."""


class Header(NamedTuple):
    """Step and score of a checkpoint."""

    step: int
    score: float | None


def save(
    run_dir: Path | str, state: TrainingState, *, score: float | None, keep_last: int = 3
) -> Path:
    """Write `RUN_DIR/checkpoints/step_<step>.pt`, then remove all but the last `keep_last`.

    Args:
        run_dir: Folder of the run; created if it is missing.
        state: The state to save.
        score: Higher is better. A finite score above that of `best.pt` replaces `best.pt`.
        keep_last: Number of checkpoints to keep in addition to `best.pt`, at least 1.

    Returns:
        The path of the checkpoint.

    Raises:
        ValueError: `state` holds a value that could not be loaded, or the folder holds later steps.
        OSError: The disk is full or the folder cannot be written.
    """
    step = state["step"]
    folder = Path(run_dir) / _FOLDER
    _check_request(folder, step=step, keep_last=keep_last)
    score = None if score is None else float(score)  # NumPy scalars cannot be loaded.
    content = _serialized({"format": FORMAT, "version": VERSION, "score": score, "state": state})
    advice = (
        f"it needs {len(content):,} bytes; earlier checkpoints are intact; free space, or choose "
        "another folder with run_dir="
    )
    path = folder / f"step_{step:012d}.pt"
    with atomic_write(path, advice=advice) as temporary:
        temporary.write_bytes(content)
    if _is_best(folder / _BEST, score=score):
        with atomic_write(folder / _BEST, advice=advice) as temporary:
            link_or_copy(path, temporary)
    for outdated in [*_step_files(folder)[keep_last:], *folder.glob(f"{TEMPORARY_PREFIX}*")]:
        outdated.unlink(missing_ok=True)
    return path


def load(
    path: Path | str, *, which: str = "latest", map_location: torch.device | str = "cpu"
) -> TrainingState:
    """Return the state stored in a checkpoint file, or in one of a run's checkpoints.

    Args:
        path: A `.pt` file, or a run's folder.
        which: In a run's folder, "latest" or "best". A damaged latest checkpoint is an error: an
            older one is never loaded in its place.
        map_location: The device to put the tensors on.

    Raises:
        FileNotFoundError: There is no such file, or no checkpoint in the folder.
        ValueError: The file is damaged, is not a checkpoint, or has another version.
    """
    torch.empty(0, device=map_location)  # Raises torch's own error if the device is missing.
    chosen = find(path, which=which)
    try:
        document = _read(chosen, map_location=map_location)
    except ValueError as error:
        older = None if chosen == Path(path) else _newest_readable(chosen)
        if older is None:
            raise
        raise ValueError(
            f"{error}; {older} is intact and can be given instead (to resume from it, with "
            "run_dir=NEW_FOLDER)"
        ) from error
    state: TrainingState = document["state"]
    return state


def find(path: Path | str, *, which: str = "latest") -> Path:
    """Return the checkpoint file that `load` would open, without reading it."""
    if which not in _WHICH:
        raise ValueError(f"which={which} is unknown; choose one of {', '.join(_WHICH)}")
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; give a run's folder or a checkpoint file (.pt)"
        )
    newest, best = latest(path), path / _FOLDER / _BEST
    chosen = newest if which == "latest" else best
    if chosen is not None and chosen.is_file():
        return chosen
    advice = "give the folder of a run that saved one"
    if which == "best":
        advice = "use which='latest'"
    elif best.is_file():
        advice = f"{best} can be given instead"
    raise FileNotFoundError(f"{path} holds no {which} checkpoint in {_FOLDER}/; {advice}")


def latest(run_dir: Path | str) -> Path | None:
    """Return a run's newest checkpoint, or None if it has none; the file is not read."""
    return next(iter(_step_files(Path(run_dir) / _FOLDER)), None)


def step_of(path: Path) -> int:
    """Return the step in the name of a file that `latest` returned."""
    match = _STEP_FILE.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def read_header(path: Path | str) -> Header:
    """Return the step and score of a checkpoint file without loading its tensors."""
    document = _read(Path(path), map_location="meta")
    return Header(step=document["state"]["step"], score=document["score"])


def read_best_header(run_dir: Path | str) -> Header | None:
    """Return the step and score of a run's best checkpoint, or None if it has none."""
    best = Path(run_dir) / _FOLDER / _BEST
    return read_header(best) if best.is_file() else None


def _check_request(folder: Path, *, step: int, keep_last: int) -> None:
    if not 0 <= step < 10**12:
        raise ValueError(f"step={step} does not fit a file name; give 0 to 999,999,999,999")
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last} would keep no checkpoint; give 1 or more")
    newest = latest(folder.parent)
    if newest is not None and step_of(newest) > step:
        raise ValueError(
            f"{newest} is later than step={step}; resume from it, or save to another folder with "
            "run_dir="
        )


def _serialized(document: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file, after checking that it can be loaded."""
    buffer = io.BytesIO()
    try:
        torch.save(document, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"a checkpoint cannot hold {name[1] if name else 'a value of the state'}; convert it "
            "to a tensor, str, int, float, bool, None, list, tuple or dict"
        ) from error
    # getbuffer() would avoid a copy, but a view kept alive by an exception crashes CPython 3.12.
    return buffer.getvalue()


def _step_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if _STEP_FILE.fullmatch(path.name))
    return sorted(paths, key=step_of, reverse=True)


def _newest_readable(path: Path) -> Path | None:
    """The newest checkpoint in the folder of `path`, other than it, that can be read."""
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
        best_score = read_header(best).score
    except (FileNotFoundError, ValueError):
        return True  # There is no best checkpoint, or it cannot be loaded.
    return best_score is None or score > best_score


def read_archive(path: Path, *, map_location: torch.device | str) -> Any:  # noqa: ANN401
    """Return what `torch.save` wrote, after a check of the archive's checksums.

    Raises:
        ValueError: The file is damaged, is not an archive of torch, or holds Python objects.
    """
    _check_intact(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse(path, "holds Python objects, which could run code and are not loaded", error)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's readers raise many types for a foreign file.
        _refuse(path, "was not written by torch.save", error)


def _read(path: Path, *, map_location: torch.device | str) -> dict[str, Any]:
    """Return the format, version, score and state of a checkpoint file."""
    document = read_archive(path, map_location=map_location)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse(path, "was written by torch.save but is not a checkpoint of mtxl_rl", None)
    if document.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')} of the checkpoint format, and this "
            f"mtxl_rl reads version {VERSION}; install the mtxl_rl that wrote it"
        )
    missing = {"score", "state"} - document.keys()
    state = document.get("state")
    if isinstance(state, dict):
        missing |= TrainingState.__required_keys__ - state.keys()
    if missing:
        _refuse(path, f"lacks {', '.join(sorted(missing))}", None)
    is_state = isinstance(state, dict) and isinstance(state["step"], int)
    if not is_state or not isinstance(document["score"], float | None):
        _refuse(path, "holds values of other types than a checkpoint's", None)
    return document


def _check_intact(path: Path) -> None:
    """Verify the archive's checksums. torch.load does not, and returns flipped bits as weights."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises many types for random bytes.
        # A wild offset is EINVAL. Any other errno is a fault of the machine, not of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        size = path.stat().st_size
        _refuse(path, f"is damaged or not a checkpoint ({size:,} bytes, not an archive)", error)
    if damaged is not None:
        _refuse(path, f"is damaged (the checksum of {damaged} does not match)", None)


def _refuse(path: Path, fault: str, cause: Exception | None) -> Never:
    raise ValueError(f"{path} {fault}; give a checkpoint that mtxl_rl wrote") from cause
