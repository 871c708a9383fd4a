"""Faults of disks and clocks: one sentence, exit code 1, and nothing written before is lost.

python tests/reliability/disk.py --operations 100 --full 20 --others 10 --checkpoints 10000

`operations` lets one random file operation of a run (open for writing, rename, delete, link, new
folder) fail with a random error. `full` trains on a file system of a random size, which needs root
and Linux. `others` are a read-only folder, a folder that is deleted, a clock that is set back, a
flush that fails, as on network disks and over a quota, and flushes that are slow. A new run and one
that is continued take turns. `checkpoints` trains until so many are in the folder, and stops and
continues the run halfway. After each case every file of the run must be whole, no checkpoint and no
row from before may be lost, and the run must be continued without the fault.
"""

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from counts import Counts, Outcome, cases, command, run_program

import mtxl_rl
from mtxl_rl import train
from mtxl_rl.config_files import load_config
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.tracking.run_record import read_record
from mtxl_rl.training.callbacks import Callback

TINY = ["model=tiny", "num_envs=4", "ppo.rollout_length=16", "torso.window_length=4", "device=cpu",
        "torso.segment_length=4", "ppo.bptt_segments=2", "torso.width=16", "torso.num_heads=2",
        "ppo.num_epochs=1", "ppo.num_minibatches=2", "logger=none", "num_processes=1", "env=TMaze",
        "env.corridor_length=3", "compile=false", "checkpoint_seconds=0"]  # fmt: skip
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE)
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.link")
ITERATION = 64
"""Steps."""
BEFORE = 2 * ITERATION
"""Steps of the run that is continued."""


class Faults:
    """An audit hook that lets one file operation below a folder fail."""

    def __init__(self) -> None:
        self.folder = ""
        self.left = -1
        self.number = errno.ENOSPC
        self.num_seen = 0
        self.event = ""
        # As part of os: errors of modules that are not the library's keep their traceback.
        names = {**globals(), "__name__": "os"}
        hook = types.FunctionType(Faults.check.__code__, names)
        sys.addaudithook(partial(hook, self))  # It cannot be removed.

    @contextmanager
    def inject(self, folder: Path, *, at: int, number: int = errno.ENOSPC) -> Any:  # noqa: ANN401
        """Let the operation with index `at` fail; -1: none, which counts them."""
        self.folder, self.left, self.number = str(folder.absolute()), at, number
        self.num_seen, self.event = 0, ""
        try:
            yield
        finally:
            self.folder = ""

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise an OSError if the event is the operation that must fail."""
        if not self.folder:
            return
        path = written_below(self.folder, event, arguments)
        if path is None:
            return
        self.num_seen += 1
        if self.num_seen - 1 == self.left:
            self.event = f"{event} {path.name}"
            raise OSError(self.number, os.strerror(self.number), str(path))


def written_below(folder: str, event: str, arguments: tuple[Any, ...]) -> Path | None:
    """The path that an audit event is about to change, if it lies in the folder."""
    is_write = event in EVENTS or (event == "open" and _writes(arguments))
    if not is_write or isinstance(arguments[0], int):
        return None
    path = Path(os.fsdecode(arguments[0])).absolute()
    return path if str(path).startswith(folder) else None


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether an `open` event is one for writing."""
    _, mode, flags = arguments
    if mode is not None:
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def whole(folder: Path, *, step: int) -> str:
    """What is torn or lost in a run's folder that had `step` steps before; empty if nothing."""
    try:
        for path in (folder / "checkpoints").glob("*.pt"):
            checkpoint.load(path)
            read_agent(path)
        if (folder / "policy.safetensors").exists():
            read_agent(folder / "policy.safetensors")
        if (folder / "config.yaml").exists():
            load_config(folder)
        rows = read_rows(folder) if (folder / "metrics.jsonl").exists() else []
        read_record(folder)
    except Exception as error:
        return f"torn: {error}"
    newest = checkpoint.latest(folder)
    if step and (newest is None or checkpoint.step_of(newest) < step):
        return f"lost: the newest checkpoint is {newest}"
    if step and [row["step"] for row in rows][:2] != [64, 128]:
        return f"lost: the rows are {rows}"
    if step and not (folder / "config.yaml").exists():
        return "lost: config.yaml"
    return ""


def checked(outcome: Outcome, folder: Path, *, step: int) -> Outcome:
    """The outcome, or a failure if files are torn or lost, or the run cannot be continued."""
    if outcome.name == "failed":
        return outcome
    fault = whole(folder, step=step)
    if not fault and checkpoint.latest(folder) is not None and (folder / "config.yaml").exists():
        resumed = command(train.main, [f"resume={folder}", "total_steps=320"])
        rows = [row["step"] for row in read_rows(folder)]
        if resumed.name != "accepted":
            fault = f"cannot be continued: {resumed}"
        elif rows != sorted(set(rows)):
            fault = f"rows after continuing: {rows}"
    return Outcome("failed", f"{fault}; {outcome}") if fault else outcome._replace(detail="")


def arguments_of(folder: Path, *, is_resumed: bool) -> list[str]:
    """A new run of three iterations, or the third iteration of one that is continued."""
    if is_resumed:
        return [f"resume={folder}", "total_steps=192"]
    return [*TINY, f"run_dir={folder}", "total_steps=192"]


def operation(rng: random.Random, faults: Faults, num_operations: dict[bool, int]) -> Any:  # noqa: ANN401
    """One operation fails."""
    is_resumed, folder = rng.random() < 0.5, Path("run")
    if is_resumed:
        shutil.copytree("original", folder)
    at, number = rng.randrange(num_operations[is_resumed]), rng.choice(ERRNOS)
    with faults.inject(folder, at=at, number=number):
        outcome = command(train.main, arguments_of(folder, is_resumed=is_resumed))
    step = BEFORE if is_resumed else 0
    event = faults.event or "none"
    case = f"{event}, {errno.errorcode[number]}, {'resumed' if is_resumed else 'new'}"
    return case, checked(outcome, folder, step=step)


@contextmanager
def small_disk(folder: Path, size: int) -> Any:  # noqa: ANN401
    """A file system of `size` bytes."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def can_mount() -> str:
    """Why no file system can be mounted; empty if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root and Linux"
    try:
        with small_disk(Path("trial"), 4096):
            return ""
    except subprocess.CalledProcessError as error:
        return f"mount failed: {error.stderr.decode().strip()}"


def full(rng: random.Random) -> tuple[str, Outcome]:
    """The disk has room for a part of the run."""
    is_resumed, size = rng.random() < 0.5, 0
    if is_resumed:
        size = sum(path.stat().st_size for path in Path("original").rglob("*"))
    size += rng.choice((20_000, 100_000, 350_000, 700_000)) + rng.randrange(100_000)
    with small_disk(Path("disk"), size):
        folder = Path("disk") / "run"
        try:
            if is_resumed:
                shutil.copytree("original", folder)
        except OSError:
            return "resumed", Outcome("too small for the copy")
        outcome = command(train.main, arguments_of(folder, is_resumed=is_resumed))
        if outcome.name != "failed":
            shutil.copytree(folder, "run")
            outcome = checked(outcome, Path("run"), step=BEFORE if is_resumed else 0)
    return f"{'resumed' if is_resumed else 'new'}, {size} bytes", outcome


def read_only(_: random.Random) -> tuple[str, Outcome]:
    """The folder of a run that is continued cannot be written."""
    folder = Path("run")
    shutil.copytree("original", folder)
    if os.geteuid() == 0:  # Permissions do not bind root.
        if can_mount():
            return "read-only", Outcome(f"skipped: {can_mount()}")
        for argv in (["--bind"], ["-o", "remount,ro,bind"]):
            subprocess.run(["mount", *argv, str(folder), str(folder)], check=True)
    else:
        folder.chmod(0o500)
    try:
        outcome = command(train.main, arguments_of(folder, is_resumed=True))
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o700)
    if outcome.name == "accepted":
        outcome = Outcome("failed", "a run trained in a folder that it could not write")
    return "read-only", checked(outcome, folder, step=BEFORE)


class Deletes(Callback):
    """Deletes the run's folder after its first iteration."""

    def on_iteration(self, *_: object, **__: object) -> None:
        """Delete it."""
        shutil.rmtree("run", ignore_errors=True)


def deleted(_: random.Random) -> tuple[str, Outcome]:
    """The folder is deleted while the run trains."""
    options = {
        name: yaml.safe_load(value) for name, _, value in (part.partition("=") for part in TINY)
    }
    try:
        mtxl_rl.train(
            options.pop("env"),
            options,
            run_dir="run",
            total_steps=640,
            callbacks=Deletes(),
            verbose=False,
        )
    except OSError as error:
        named = "run" in str(error) and "\n" not in str(error)
        return "deleted", Outcome("refused" if named else "failed", str(error))
    return "deleted", Outcome("failed", "the run continued without its folder")


def clock(rng: random.Random) -> tuple[str, Outcome]:
    """The clock is set back, by up to years, while a run is continued."""
    folder, seconds = Path("run"), rng.choice((1, 3600, 10**8))
    shutil.copytree("original", folder)
    now = time.time

    def earlier() -> float:
        return now() - seconds

    with mock.patch.object(time, "time", earlier):
        outcome = command(train.main, arguments_of(folder, is_resumed=True))
    if outcome.name != "accepted":
        outcome = Outcome("failed", f"the clock stopped the run: {outcome}")
    return f"clock, {seconds} s", checked(outcome, folder, step=BEFORE)


def failing_flush(rng: random.Random) -> tuple[str, Outcome]:
    """A flush fails after the bytes were written: network disks report a full quota only then."""
    flush, left, number = os.fsync, rng.randrange(8), rng.choice((errno.EDQUOT, errno.EIO))
    is_resumed = rng.random() < 0.5

    def fail(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    if is_resumed:
        shutil.copytree("original", "run")
    with mock.patch.object(os, "fsync", fail):
        outcome = command(train.main, arguments_of(Path("run"), is_resumed=is_resumed))
    if outcome.name == "accepted" and left < 0:
        outcome = Outcome("failed", "a flush failed, and the run went on")
    case = f"flush, {errno.errorcode[number]}"
    return case, checked(outcome, Path("run"), step=BEFORE if is_resumed else 0)


def slow_flush(rng: random.Random) -> tuple[str, Outcome]:
    """Each flush takes long, as on a busy network disk."""
    flush, seconds = os.fsync, rng.choice((0.05, 0.2, 1.0))
    shutil.copytree("original", "run")

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        flush(descriptor)

    with mock.patch.object(os, "fsync", slow):
        outcome = command(train.main, arguments_of(Path("run"), is_resumed=True))
    if outcome.name != "accepted":
        outcome = Outcome("failed", f"slow flushes stopped the run: {outcome}")
    return f"slow flush, {seconds} s", checked(outcome, Path("run"), step=BEFORE)


def many_checkpoints(number: int) -> tuple[str, Outcome]:
    """Keep so many checkpoints; the run is continued halfway."""
    half, total = number // 2, max(number, 2)
    options = [*TINY, "run_dir=run", f"keep_checkpoints={total}"]
    for argv in (
        [*options, f"total_steps={ITERATION * half}"],
        ["resume=run", f"total_steps={ITERATION * total}"],
    ):
        outcome = command(train.main, argv)
        if outcome.name != "accepted":
            return "checkpoints", Outcome("failed", str(outcome))
    names = sorted(path.name for path in Path("run/checkpoints").glob("step_*.pt"))
    expected = [f"step_{ITERATION * k:012d}.pt" for k in range(1, total + 1)]
    rows = [row["step"] for row in read_rows(Path("run"))]
    if names != expected or rows != [ITERATION * k for k in range(1, total + 1)]:
        return "checkpoints", Outcome("failed", f"{len(names)} checkpoints, {len(rows)} rows")
    seconds = np.array([Path("run/checkpoints", name).stat().st_mtime for name in names])
    parts = np.diff(seconds[:: max(1, total // 10)])
    print("seconds for each tenth of the checkpoints:", *(f"{part:.1f}" for part in parts))
    return "checkpoints", Outcome("trained")


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Prepare a run, then break disks and clocks."""
    warnings.simplefilter("ignore")
    faults, original = Faults(), Path("original")
    num_operations = {}
    for is_resumed, folder in ((False, Path("run")), (True, original)):
        if is_resumed:
            command(train.main, [*TINY, f"run_dir={original}", f"total_steps={BEFORE}"])
            shutil.copytree(original, "copy")
        with faults.inject(folder, at=-1):
            command(train.main, arguments_of(folder, is_resumed=is_resumed))
        num_operations[is_resumed] = faults.num_seen
    shutil.rmtree("run")
    shutil.rmtree(original)
    Path("copy").rename(original)
    print(f"file operations of a new run and of one that is continued: {num_operations}")
    reason = can_mount()
    print(f"full: skipped, {reason}" if reason else "", flush=True)
    others = (read_only, deleted, clock, failing_flush, slow_flush)
    parts: tuple[tuple[str, int, Callable[[random.Random, int], Any]], ...] = (
        ("operations", arguments.operations, lambda rng, _: operation(rng, faults, num_operations)),
        ("full", 0 if reason else arguments.full, lambda rng, _: full(rng)),
        ("others", arguments.others, lambda rng, case: others[case % len(others)](rng)),
        ("checkpoints", 1, lambda *_: many_checkpoints(arguments.checkpoints)),
    )
    tables = []
    for title, size, function in parts:
        counts = Counts(f"disk: {title}")
        for case in cases(arguments, size):
            kind, outcome = function(random.Random(f"{arguments.seed}/{case}/{title}"), case)
            shutil.rmtree("run", ignore_errors=True)
            counts.add(kind.partition(",")[0], f"case {case}: {kind}", outcome)
        tables.append(counts)
    return tables


if __name__ == "__main__":
    run_program(__doc__, {"operations": 100, "full": 20, "others": 10, "checkpoints": 2_500}, run)
