"""Checkpoints: whole or absent on disk, refused with a sentence when they cannot be trusted."""

import errno
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtxl_rl.tracking import checkpoint

STATE = {"weight": torch.arange(1000.0), "note": "kept"}


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": np.random.default_rng(7).bit_generator.state,
        "plain": (1, -(2**200), 0.5, True, None, "text", [torch.ones(2, dtype=torch.bfloat16)]),
    }
    path = checkpoint.save(tmp_path, state, step=12, score=None)
    loaded = checkpoint.load(path)
    assert path == tmp_path / "checkpoints" / "step_000000000012.pt"
    assert loaded["plain"][:6] == state["plain"][:6]
    assert loaded["plain"][6][0].dtype == torch.bfloat16
    assert loaded["rng"] == state["rng"]
    assert isinstance(loaded["module"], OrderedDict)
    torch.testing.assert_close(loaded["module"], state["module"], rtol=0, atol=0)
    optimizer.load_state_dict(loaded["optimizer"])
    module.load_state_dict(loaded["module"])


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [0, np.zeros(2)]}}, r"state\['a'\]\['b'\]\[1\] is a numpy\.ndarray"),
        ({"lr": np.float64(0.1)}, r"state\['lr'\] is a numpy\.float64"),
        ({"a": {1.5: 0}}, r"state\['a'\] has the key 1\.5 of type float"),
        ({"size": torch.Size([2])}, r"state\['size'\] is a torch\.Size"),
        ({"path": Path("x")}, r"state\['path'\] is a pathlib"),
        ({"n": 2**5000}, r"state\['n'\] is an integer of 5001 bits"),
    ],
)
def test_what_could_not_be_loaded_is_refused_at_save_time_by_its_key_path(
    tmp_path: Path, state: dict[str, Any], where: str
) -> None:
    with pytest.raises(ValueError, match=where):
        checkpoint.save(tmp_path, state, step=1, score=None)
    assert not (tmp_path / "checkpoints").exists()


def test_the_largest_integer_that_is_let_in_comes_back(tmp_path: Path) -> None:
    largest = 2 ** (8 * 255 - 1) - 1
    checkpoint.save(tmp_path, {"n": largest, "m": -largest}, step=1, score=None)
    assert checkpoint.load(tmp_path) == {"n": largest, "m": -largest}
    with pytest.raises(ValueError, match="bits"):
        checkpoint.save(tmp_path, {"n": largest + 1}, step=2, score=None)


def test_a_numpy_score_does_not_make_the_file_unreadable(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=1, score=np.float64(0.5))
    assert checkpoint.read_header(path) == checkpoint.Header(step=1, score=0.5)
    assert checkpoint.load(tmp_path, which="best")["note"] == "kept"


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.9)]:
        checkpoint.save(tmp_path, {"step": step}, step=step, score=score, keep_last=2)
    assert names(tmp_path) == ["best.pt", "step_000000000004.pt", "step_000000000005.pt"]
    assert checkpoint.load(tmp_path) == {"step": 5}
    assert checkpoint.load(tmp_path, which="best") == {"step": 2}
    assert checkpoint.read_header(tmp_path / "checkpoints/best.pt").score == 0.9


def test_the_best_score_survives_a_resume(tmp_path: Path) -> None:
    program = """
import sys
from mtxl_rl.tracking import checkpoint
checkpoint.save(sys.argv[1], {"step": 1}, step=1, score=0.9)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    checkpoint.save(tmp_path, {"step": 2}, step=2, score=0.3)
    assert checkpoint.load(tmp_path, which="best") == {"step": 1}
    checkpoint.save(tmp_path, {"step": 3}, step=3, score=0.95)
    assert checkpoint.load(tmp_path, which="best") == {"step": 3}


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_never_becomes_the_best(
    tmp_path: Path, score: float | None
) -> None:
    checkpoint.save(tmp_path, {"step": 1}, step=1, score=score)
    assert names(tmp_path) == ["step_000000000001.pt"]
    checkpoint.save(tmp_path, {"step": 2}, step=2, score=-5.0)
    checkpoint.save(tmp_path, {"step": 3}, step=3, score=score)
    assert checkpoint.load(tmp_path, which="best") == {"step": 2}


def test_a_damaged_best_gives_way_to_the_next_scored_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1}, step=1, score=0.9)
    (tmp_path / "checkpoints/best.pt").unlink()
    (tmp_path / "checkpoints/best.pt").write_bytes(b"")
    checkpoint.save(tmp_path, {"step": 2}, step=2, score=0.1)
    assert checkpoint.load(tmp_path, which="best") == {"step": 2}


def test_the_best_is_copied_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    checkpoint.save(tmp_path, {"step": 1}, step=1, score=0.9)
    assert checkpoint.load(tmp_path, which="best") == {"step": 1}
    assert names(tmp_path) == ["best.pt", "step_000000000001.pt"]


def test_saving_one_step_twice_replaces_the_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"try": 1}, step=1, score=1.0)
    checkpoint.save(tmp_path, {"try": 2}, step=1, score=1.0)
    assert checkpoint.load(tmp_path) == {"try": 2}
    assert checkpoint.load(tmp_path, which="best") == {"try": 1}


def test_a_run_does_not_save_before_the_checkpoints_of_another_course(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, {"step": step}, step=step, score=float(step))
    with pytest.raises(ValueError, match=r"step_000000000030\.pt is later than step=15"):
        checkpoint.save(tmp_path, {"step": 15}, step=15, score=None)
    removed = checkpoint.truncate_after(tmp_path, step=10)
    checkpoint.save(tmp_path, {"step": 15}, step=15, score=None)
    assert [path.name for path in removed] == ["step_000000000030.pt", "step_000000000020.pt"]
    assert names(tmp_path) == ["best.pt", "step_000000000010.pt", "step_000000000015.pt"]


@pytest.mark.parametrize(("step", "keep_last"), [(-1, 1), (10**12, 1), (0, 0)])
def test_impossible_requests_are_refused(tmp_path: Path, step: int, keep_last: int) -> None:
    with pytest.raises(ValueError, match="give"):
        checkpoint.save(tmp_path, {}, step=step, score=None, keep_last=keep_last)


def test_the_newest_checkpoint_is_named_without_being_read(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, STATE, step=9, score=1.0)
    path = checkpoint.save(tmp_path, STATE, step=10, score=None)
    path.write_bytes(b"")
    assert checkpoint.latest(tmp_path) == checkpoint.find(tmp_path) == path


def test_what_is_missing_is_said_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no latest checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, STATE, step=1, score=None)
    with pytest.raises(FileNotFoundError, match=r"no best checkpoint.*which='latest'"):
        checkpoint.load(tmp_path, which="best")
    with pytest.raises(ValueError, match="which='newest'"):
        checkpoint.load(tmp_path, which="newest")


def test_zero_bytes_truncation_and_random_bytes_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=1, score=None)
    whole = path.read_bytes()
    rng = random.Random(0)
    contents = [b"", b"PK", rng.randbytes(5000), whole[:-1], whole[1:], *[b"\0" * 4096]]
    contents += [whole[: rng.randrange(len(whole))] for _ in range(50)]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is damaged or not a checkpoint .*give a"):
            checkpoint.load(path)


def test_no_flipped_bit_reaches_the_weights(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=1, score=None)
    whole = path.read_bytes()
    at = whole.index(STATE["weight"].numpy().tobytes()) + 2000  # type: ignore[attr-defined]
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="is damaged \\(the checksum of"):
        checkpoint.load(path)


def test_any_change_of_a_byte_gives_the_same_state_or_one_sentence(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=1, score=None)
    whole = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    same = 0
    for _ in range(300):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + rng.randbytes(1) + whole[at + 1 :])
        try:
            loaded = checkpoint.load(path)
        except ValueError as error:
            refused += str(error).startswith(str(path))
        else:
            same += torch.equal(loaded["weight"], torch.arange(1000.0))
    assert refused + same == 300
    assert refused > 100


class Bomb:
    """A pickle of this would run code when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("bomb-went-off",)


def test_a_file_with_code_is_refused_and_does_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = {"format": checkpoint.FORMAT, "version": 1, "step": 0, "score": None}
    torch.save({**document, "state": Bomb()}, "code.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"code\.pt holds Python objects"):
        checkpoint.load("code.pt")
    with pytest.raises(ValueError, match=r"pickle\.pt is damaged or not a checkpoint"):
        checkpoint.load("pickle.pt")
    assert not Path("bomb-went-off").exists()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": checkpoint.FORMAT, "version": 1}, tmp_path / "part.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name, why in {
        "weights.pt": "is a file of torch.save but not a checkpoint of mtxl_rl",
        "list.pt": "is a file of torch.save but not a checkpoint of mtxl_rl",
        "part.pt": "lacks a part of a checkpoint",
        "arrays.npz": "is not a file of torch.save",
    }.items():
        with pytest.raises(ValueError, match=f"{tmp_path / name} {why}; give a checkpoint"):
            checkpoint.load(tmp_path / name)


def test_a_newer_version_says_what_to_install(tmp_path: Path) -> None:
    document = {"format": checkpoint.FORMAT, "version": 2, "step": 0, "score": None, "state": {}}
    torch.save(document, tmp_path / "new.pt")
    with pytest.raises(ValueError, match=r"new\.pt has version 2 .*reads version 1; install"):
        checkpoint.load(tmp_path / "new.pt")


def test_a_damaged_latest_is_an_error_that_names_the_intact_older_one(tmp_path: Path) -> None:
    paths = [checkpoint.save(tmp_path, {"step": n}, step=n, score=None) for n in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{paths[2]} is damaged.*{paths[1]} is intact"):
        checkpoint.load(tmp_path)
    paths[1].write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{paths[2]} is damaged.*{paths[0]} is intact"):
        checkpoint.load(tmp_path)
    paths[0].write_bytes(b"")
    with pytest.raises(ValueError, match=f"{paths[2]} is damaged") as caught:
        checkpoint.load(tmp_path)
    assert "intact" not in str(caught.value)


def test_a_missing_device_is_not_called_a_damaged_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=1, score=None)
    with pytest.raises(RuntimeError, match="nonsense"):
        checkpoint.load(path, map_location="nonsense")
    assert checkpoint.load(path, map_location="meta")["weight"].is_meta


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_save_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, function: str
) -> None:
    checkpoint.save(tmp_path, {"step": 1}, step=1, score=1.0)

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(os, function, fail)
        patched.setattr(Path, "replace", fail) if function == "replace" else None
        with pytest.raises(type(failure)):
            checkpoint.save(tmp_path, {"step": 2}, step=2, score=2.0)
    assert names(tmp_path) == ["best.pt", "step_000000000001.pt"]
    assert checkpoint.load(tmp_path) == checkpoint.load(tmp_path, which="best") == {"step": 1}


def test_a_full_disk_is_told_in_one_sentence_and_costs_no_checkpoint(tmp_path: Path) -> None:
    """A process may write no file above 64 KiB: the kernel refuses in the middle of the write."""
    checkpoint.save(tmp_path, {"step": 1}, step=1, score=None)
    program = """
import resource, signal, sys, torch
from mtxl_rl.tracking import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    checkpoint.save(sys.argv[1], {"weight": torch.zeros(100_000)}, step=2, score=None)
except OSError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert "step_000000000002.pt (40" in run.stdout
    assert "earlier checkpoints are intact; free space, or choose another folder" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert names(tmp_path) == ["step_000000000001.pt"]
    assert checkpoint.load(tmp_path) == {"step": 1}


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*run_dir="):
        checkpoint.save(tmp_path / "run", STATE, step=1, score=None)


def test_kill_minus_nine_during_saves_leaves_a_loadable_latest(tmp_path: Path) -> None:
    program = """
import sys, torch
from mtxl_rl.tracking import checkpoint
for step in range(1, 10**6):
    state = {"step": step, "weight": torch.full((1_000_000,), float(step))}
    checkpoint.save(sys.argv[1], state, step=step, score=float(step), keep_last=2)
"""
    folder = tmp_path / "checkpoints"
    torn = 0
    for attempt in range(3):
        run_dir = tmp_path / str(attempt)
        folder = run_dir / "checkpoints"
        process = subprocess.Popen([sys.executable, "-c", program, run_dir])
        _wait_for(lambda: any(folder.glob("step_*")), process)  # noqa: B023 - called at once
        _wait_for(lambda: any(folder.glob(".step_*.tmp")), process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
        torn += any(folder.glob(".step_*.tmp"))
        state = checkpoint.load(run_dir)
        assert torch.equal(state["weight"], torch.full((1_000_000,), float(state["step"])))
        assert checkpoint.load(run_dir, which="best")["step"] <= state["step"]
        checkpoint.save(run_dir, state, step=10**6, score=None)
        assert not list(folder.glob(".*"))
    assert torn, "no kill hit the middle of a write; the test proved nothing"


def _wait_for(condition: Any, process: "subprocess.Popen[bytes]") -> None:  # noqa: ANN401
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the saving process ended by itself"
        assert time.monotonic() < deadline, "the saving process saved nothing"
