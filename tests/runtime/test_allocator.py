"""Freed memory stays with the process, where the C library can do that."""

import ctypes

import pytest

from mtxl_rl.runtime.allocator import keep_freed_memory


class _Glibc:
    """Records the settings that it receives."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        self.settings[parameter] = value
        return 1


def test_no_block_is_mapped_on_its_own_or_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    glibc = _Glibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: glibc)
    keep_freed_memory()
    mmap_max, trim_threshold = glibc.settings[-4], glibc.settings[-1]
    assert mmap_max == 0
    assert trim_threshold >= 2**30
    assert all(0 <= value < 2**31 for value in glibc.settings.values())  # mallopt takes C ints


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_c_libraries_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(_name: str | None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_freed_memory()
