"""Checkpoints: complete or absent on disk, and refused with one sentence when damaged."""

import errno
import math
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.checkpoint import TrainingState

WEIGHT = torch.arange(1000.0)


def state(step: int = 1, **agent: Any) -> TrainingState:  # noqa: ANN401
    return {
        "step": step,
        "agent": {"weight": WEIGHT} | agent,
        "generator": torch.zeros(1),
        "episodes": {},
        "collector": {},
        "env": None,
        "description": "{}",
    }


def save(run_dir: Path, *, step: int = 1, score: float | None = None, keep_last: int = 3) -> Path:
    return checkpoint.save(run_dir, state(step), score=score, keep_last=keep_last)


def load_step(run_dir: Path, *, which: str = "latest") -> int:
    return checkpoint.load(run_dir, which=which)["step"]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_loaded_state_equals_the_saved_one(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    agent = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": np.random.default_rng(7).bit_generator.state,
        "plain": (1, -(2**200), 0.5, True, None, "text", [torch.ones(2, dtype=torch.bfloat16)]),
    }
    path = checkpoint.save(tmp_path, state(12, **agent), score=None)
    assert path == tmp_path / "checkpoints" / "step_000000000012.pt"
    loaded = checkpoint.load(path)
    assert loaded.keys() == state().keys()
    assert loaded["step"] == 12
    assert loaded["agent"]["plain"][:6] == agent["plain"][:6]
    assert loaded["agent"]["plain"][6][0].dtype == torch.bfloat16
    assert loaded["agent"]["rng"] == agent["rng"]
    assert isinstance(loaded["agent"]["module"], OrderedDict)
    torch.testing.assert_close(loaded["agent"]["module"], agent["module"], rtol=0, atol=0)
    optimizer.load_state_dict(loaded["agent"]["optimizer"])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.zeros(2), r"numpy.*\.multiarray\._reconstruct"),
        (np.float64(0.1), r"numpy.*\.multiarray\.scalar"),
        (Path("x"), "pathlib"),
        (2**5000, "a value of the state"),
        (lambda: 0, "a value of the state"),
    ],
)
def test_a_value_that_could_not_be_loaded_is_refused_when_saving(
    tmp_path: Path, value: object, name: str
) -> None:
    with pytest.raises(ValueError, match=f"cannot hold {name}.*; convert it to a tensor, str"):
        checkpoint.save(tmp_path, state(value=value), score=None)
    assert not (tmp_path / "checkpoints").exists()


def test_a_numpy_score_can_be_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, score=np.float64(0.5))
    assert checkpoint.read_header(path) == checkpoint.Header(step=1, score=0.5)


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.9)]:
        save(tmp_path, step=step, score=score, keep_last=2)
    assert names(tmp_path) == ["best.pt", "step_000000000004.pt", "step_000000000005.pt"]
    assert load_step(tmp_path) == 5
    assert load_step(tmp_path, which="best") == 2
    assert checkpoint.read_header(tmp_path / "checkpoints/best.pt").score == 0.9


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_never_becomes_the_best(
    tmp_path: Path, score: float | None
) -> None:
    save(tmp_path, step=1, score=score)
    assert names(tmp_path) == ["step_000000000001.pt"]
    save(tmp_path, step=2, score=-5.0)
    save(tmp_path, step=3, score=score)
    assert load_step(tmp_path, which="best") == 2


def test_a_damaged_best_is_replaced_by_the_next_scored_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, step=1, score=0.9)
    (tmp_path / "checkpoints/best.pt").unlink()
    (tmp_path / "checkpoints/best.pt").write_bytes(b"")
    save(tmp_path, step=2, score=0.1)
    assert load_step(tmp_path, which="best") == 2


def test_the_best_is_copied_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    save(tmp_path, score=0.9)
    assert load_step(tmp_path, which="best") == 1
    assert names(tmp_path) == ["best.pt", "step_000000000001.pt"]


def test_saving_one_step_twice_replaces_the_file_but_not_an_equal_best(tmp_path: Path) -> None:
    for attempt in (1, 2):
        checkpoint.save(tmp_path, state(attempt=attempt), score=1.0)
    assert checkpoint.load(tmp_path)["agent"]["attempt"] == 2
    assert checkpoint.load(tmp_path, which="best")["agent"]["attempt"] == 1


def test_saving_before_a_later_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, step=30)
    with pytest.raises(ValueError, match=r"step_000000000030\.pt is later than step=15.*run_dir="):
        save(tmp_path, step=15)


@pytest.mark.parametrize(("step", "keep_last"), [(-1, 1), (10**12, 1), (0, 0)])
def test_arguments_out_of_range_are_refused(tmp_path: Path, step: int, keep_last: int) -> None:
    with pytest.raises(ValueError, match="give"):
        save(tmp_path, step=step, keep_last=keep_last)


def test_the_newest_checkpoint_is_found_without_being_read(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, step=9, score=1.0)
    path = save(tmp_path, step=10)
    path.write_bytes(b"")
    assert checkpoint.latest(tmp_path) == checkpoint.find(tmp_path) == path
    assert checkpoint.step_of(path) == 10


def test_a_missing_checkpoint_is_reported_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no latest checkpoint"):
        checkpoint.load(tmp_path)
    save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no best checkpoint.*which='latest'"):
        checkpoint.load(tmp_path, which="best")
    with pytest.raises(ValueError, match="which=newest is unknown; choose one of latest, best"):
        checkpoint.load(tmp_path, which="newest")


def test_zero_bytes_truncation_and_random_bytes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = path.read_bytes()
    rng = random.Random(0)
    damaged = [b"", b"PK", rng.randbytes(5000), content[:-1], content[1:], b"\0" * 4096]
    damaged += [content[: rng.randrange(len(content))] for _ in range(20)]
    for part in damaged:
        path.write_bytes(part)
        with pytest.raises(ValueError, match=rf"{path} is damaged or not a checkpoint .*give a"):
            checkpoint.load(path)


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHT.numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged \\(the checksum of"):
        checkpoint.load(path)


def test_any_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = path.read_bytes()
    rng = random.Random(1)
    refused = harmless = 0
    for _ in range(200):
        position = rng.randrange(len(content))
        path.write_bytes(content[:position] + rng.randbytes(1) + content[position + 1 :])
        try:
            loaded = checkpoint.load(path)
        except ValueError as error:
            refused += str(error).startswith(str(path))
        else:
            harmless += torch.equal(loaded["agent"]["weight"], WEIGHT)
    assert refused + harmless == 200
    assert refused > 50


class Bomb:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("bomb-went-off",)


def test_a_file_with_code_is_refused_and_does_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "version": 1, "score": None, "state": Bomb()}, "a.pt")
    Path("b.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"a\.pt holds Python objects"):
        checkpoint.load("a.pt")
    with pytest.raises(ValueError, match=r"b\.pt is damaged or not a checkpoint"):
        checkpoint.load("b.pt")
    assert not Path("bomb-went-off").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    document = {"format": checkpoint.FORMAT, "version": 1, "score": None}
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(document, tmp_path / "part.pt")
    torch.save(document | {"state": {"step": 1, "agent": {}}}, tmp_path / "incomplete.pt")
    torch.save(document | {"version": 2, "state": {}}, tmp_path / "newer.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name, fault in {
        "weights.pt": "was written by torch.save but is not a checkpoint of mtxl_rl; give a",
        "list.pt": "was written by torch.save but is not a checkpoint of mtxl_rl; give a",
        "part.pt": "lacks state; give a checkpoint",
        "incomplete.pt": "lacks collector, description, env, episodes, generator; give a",
        "newer.pt": "has version 2 of the checkpoint format, .*reads version 1; install",
        "arrays.npz": "was not written by torch.save; give a checkpoint",
    }.items():
        with pytest.raises(ValueError, match=f"{tmp_path / name} {fault}"):
            checkpoint.load(tmp_path / name)


def test_a_damaged_latest_is_an_error_that_names_the_intact_older_one(tmp_path: Path) -> None:
    paths = [save(tmp_path, step=step) for step in (1, 2, 3)]
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


def test_a_missing_device_is_not_reported_as_a_damaged_file(tmp_path: Path) -> None:
    path = save(tmp_path)
    with pytest.raises(RuntimeError, match="nonsense"):
        checkpoint.load(path, map_location="nonsense")
    assert checkpoint.load(path, map_location="meta")["agent"]["weight"].is_meta


def test_a_full_disk_is_one_sentence_and_keeps_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, step=1, score=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="cannot write") as caught:
            save(tmp_path, step=2, score=2.0)
    assert caught.value.errno == errno.ENOSPC
    for part in ("step_000000000002.pt: No space left", "bytes; earlier checkpoints", "run_dir="):
        assert part in str(caught.value)
    assert names(tmp_path) == ["best.pt", "step_000000000001.pt"]
    assert load_step(tmp_path) == load_step(tmp_path, which="best") == 1


def test_the_temporary_file_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    save(tmp_path, step=1)
    (tmp_path / "checkpoints" / ".tmp.step_000000000002.pt").write_bytes(b"half a checkpoint")
    assert load_step(tmp_path) == 1
    save(tmp_path, step=3)
    assert names(tmp_path) == ["step_000000000001.pt", "step_000000000003.pt"]


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write .*run_dir="):
        save(tmp_path / "run")
