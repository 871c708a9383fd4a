"""Gradient checkpointing: the same gradients, from fewer tensors kept."""

import pytest
import torch
from torch import Tensor

from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig


def learned(options: dict, *, is_checkpointed: bool) -> tuple[list[Tensor], int]:
    """The gradients of all weights, and the bytes that were kept for them between the passes."""
    torch.manual_seed(0)
    config = TorsoConfig(
        width=16, num_layers=3, window_length=8, segment_length=8,
        gradient_checkpointing=is_checkpointed, **options,
    )  # fmt: skip
    torso = build_torso(config).double()
    x = torch.randn(2, 64, 16).double()
    is_first = torch.zeros(2, 64, dtype=torch.bool)
    is_first[1, 20] = True
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = torso(x, torso.initial_state(2), is_first)
    # A layer that is run again keeps its inside for as long as its own backward pass lasts.
    held = sum(kept.values())
    gradients = torch.autograd.grad(y.square().sum(), list(torso.parameters()))
    return list(gradients), held


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"long_term": "slots", "slots": SlotsConfig(num_slots=3)},
        {"sublayers": SublayersConfig(feedforward_dropout=0.3)},
    ],
    ids=["delta", "slots", "dropout"],
)
def test_the_gradients_are_the_same_and_less_is_kept_for_them(options: dict) -> None:
    plain, held = learned(options, is_checkpointed=False)
    checkpointed, held_less = learned(options, is_checkpointed=True)
    for expected, output in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(expected, output, rtol=1e-12, atol=1e-12)
    assert held_less < 0.3 * held
