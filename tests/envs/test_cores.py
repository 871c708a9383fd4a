"""Processes that train together on a machine share its cores."""

import pytest

from mtxl_rl.envs import cores


@pytest.mark.parametrize(
    ("num_processes", "expected"), [(None, 8), ("1", 8), ("2", 4), ("3", 2), ("64", 1)]
)
def test_each_process_has_an_equal_share_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, num_processes: str | None, expected: int
) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if num_processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", num_processes)
    assert cores.num_cores_per_process() == expected
