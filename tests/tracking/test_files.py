"""Atomic writes and the lock on a run's folder."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtxl_rl.tracking.files import atomic_write, run_lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    for content in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.suffix == ".csv"
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert names(path.parent) == ["table.csv"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, function: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    path = tmp_path / "table.csv"
    path.write_text("old")
    if function == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if function == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)) as caught, atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("torn")
        if function == "write":
            fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]
    if isinstance(failure, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.strerror == (
            f"cannot write {path}: No space left; free space there, or choose another path"
        )


def test_the_file_and_its_folder_are_flushed_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda _: events.append("fsync"))
    monkeypatch.setattr(
        Path, "replace", lambda *paths: [events.append("replace"), replace(*paths)][1]
    )
    with atomic_write(tmp_path / "table.csv") as temporary:
        temporary.write_text("content")
    assert events[:2] == ["fsync", "replace"]
    assert events[2:] == (["fsync"] if os.name == "posix" else [])


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where the folder should be")
    path = tmp_path / "folder" / "table.csv"
    with pytest.raises(OSError, match=f"cannot write {path}"), atomic_write(path):
        pass


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot lock a folder")
def test_a_second_lock_is_refused_and_the_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_lock(folder), pytest.raises(ValueError, match="is in use"), run_lock(folder):
        pass
    assert folder.is_dir()
    with run_lock(folder):
        pass


def test_a_run_that_fails_removes_its_new_folder_only_if_it_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"), run_lock(tmp_path / "empty"):
        raise ValueError("failed")
    with pytest.raises(ValueError, match="failed"), run_lock(tmp_path / "run"):  # noqa: PT012
        (tmp_path / "run" / "config.yaml").write_text("seed: 0")
        raise ValueError("failed")
    assert names(tmp_path) == ["run"]


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ValueError, match="is a file or lies below one"), run_lock(folder):
            pass


def test_on_windows_a_file_in_the_folder_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: set[int] = set()

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert size == 1
        inode = os.fstat(descriptor).st_ino
        if mode == 0:
            locked.remove(inode)
        elif inode in locked:
            raise PermissionError
        else:
            locked.add(inode)

    windows = SimpleNamespace(locking=locking, LK_UNLCK=0, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(sys, "platform", "win32")
    with run_lock(tmp_path), pytest.raises(ValueError, match="in use"), run_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
