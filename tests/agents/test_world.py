"""The processes of a run: what one gathers from the others."""

import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mtxl_rl.agents.world import World, concatenate_rows, select_rows, tensors_hash


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint64, torch.float32, torch.bfloat16])
def test_tensors_of_any_dtype_are_gathered(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    def all_gather_object(parts: list[Any], item: object, **_: object) -> None:
        parts[:] = [pickle.loads(pickle.dumps(item)) for _ in parts]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    tensor = torch.arange(3).to(dtype)
    gathered = World(rank=0, size=2).gather({"state": tensor})
    assert len(gathered) == 2
    assert all(torch.equal(part["state"], tensor) for part in gathered)
    assert gathered[0]["state"].dtype == dtype


def test_rows_are_selected_from_what_was_joined() -> None:
    parts = [{"a": torch.arange(2) + 2 * rank, "name": "x"} for rank in range(3)]
    joined = concatenate_rows(parts)
    assert joined["a"].tolist() == [0, 1, 2, 3, 4, 5]
    local = select_rows(joined, World(rank=1, size=3).rows(2), num_rows=6)
    assert local["a"].tolist() == [2, 3]
    assert local["name"] == "x"
    with pytest.raises(RuntimeError, match="has 6 environments, not 8"):
        select_rows(joined, slice(0, 4), num_rows=8)


def test_what_differs_between_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rank=0, size=3)
    monkeypatch.setattr(world, "gather", lambda item: [item, item, {"a": 1, "b": 3}])
    with pytest.raises(RuntimeError, match="b is 2 in process 0 and 3 in process 2; start again"):
        world.check_equal({"a": 1, "b": 2}, remedy="start again")
    World().check_equal({"a": 1}, remedy="")


def test_a_hash_sees_what_a_sum_does_not() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3).bfloat16()}
    swapped = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor(3).bfloat16()}
    assert tensors_hash(tensors) == tensors_hash(
        {key: tensor.clone() for key, tensor in tensors.items()}
    )
    assert tensors_hash(tensors) != tensors_hash(swapped)


def test_a_process_without_others_does_not_wait() -> None:
    assert World().wait_seconds() == [0]
