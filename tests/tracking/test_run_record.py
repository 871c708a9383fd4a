"""The record of a run: complete after an end or an error, open after a kill."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mtxl_rl.tracking import run_record as module
from mtxl_rl.tracking.run_record import RECORD_FILE, read_record, run_record


def test_an_entry_names_versions_machine_and_outcome(tmp_path: Path) -> None:
    with run_record(tmp_path, world_size=2, step=10) as entry:
        (during,) = read_record(tmp_path)
        entry |= {"last_step": 20, "outcome": "finished"}
    (after,) = read_record(tmp_path)
    assert (during["end"], during["outcome"], during["last_step"]) == (None, None, None)
    assert after == entry
    assert (after["first_step"], after["last_step"], after["world_size"]) == (10, 20, 2)
    assert (after["mtxl_rl"], after["python"]) == (version("mtxl_rl"), platform.python_version())
    assert after["start"] <= after["end"]


def test_a_killed_process_leaves_an_open_entry_and_the_next_one_is_appended(tmp_path: Path) -> None:
    worker = str(Path(__file__).with_name("killed_worker.py"))
    done = subprocess.run([sys.executable, worker, str(tmp_path)], check=False)
    assert done.returncode == 9
    with run_record(tmp_path) as entry:
        entry["outcome"] = "finished"
    assert [e["outcome"] for e in read_record(tmp_path)] == [None, "finished"]


def test_an_installed_package_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment lies in another project's checkout."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "site-packages" / "mtxl_rl")
    with run_record(tmp_path) as entry:
        assert entry["commit"] is None


def test_a_record_that_cannot_be_completed_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    def fail() -> None:
        with run_record(tmp_path):
            monkeypatch.setattr(module, "_write", full)
            raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        fail()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("[")
    with pytest.raises(ValueError, match=rf"{RECORD_FILE} is not JSON.*delete it, or restore it"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["7", '["finished"]', '{"outcome": null}', "[" * 100_000])
def test_a_record_of_another_form_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{RECORD_FILE} is not .*; delete it, or restore it"):
        read_record(tmp_path)
