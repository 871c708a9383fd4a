"""All is made on the weights' device: seen on the meta device, which every machine has.

Its tensors have a device and a shape but no numbers, and mixing them with a CPU's fails, as on a
GPU. Recurrent baselines count runs, which needs numbers: they are tested by `make test-gpu` alone.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from mtxl_rl.torso import (
    SlotsConfig,
    TokensConfig,
    TorsoConfig,
    build_torso,
    cache,
    memory_transformer,
)
from mtxl_rl.torso.torso_config import POSITIONS

OPTIONS: dict[str, dict[str, Any]] = {
    "no memory": {"long_term": "none"},
    "delta": {"decay": "coupled"},
    "linear": {"long_term": "linear", "decay": "free"},
    "agalite": {"long_term": "agalite"},
    "slots": {"long_term": "slots"},
    "shared slots": {"long_term": "slots", "slots": SlotsConfig(is_shared=True)},
    "tokens": {"long_term": "tokens", "tokens": TokensConfig(separate_control=True)},
    "all-attention, nBRC": {"all_attention": True, "gate": "nbrc"},
    **{f"position {position}": {"position": position} for position in POSITIONS},
}


def use_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for numbers, or knows no meta device: answered as a GPU's host would."""
    for module in (cache, memory_transformer):
        monkeypatch.setattr(module, "may_skip", lambda *_, **__: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def run(name: str) -> None:
    sizes = {"width": 8, "num_layers": 2, "num_heads": 2, "window_length": 4, "segment_length": 4}
    torso = build_torso(TorsoConfig(**sizes, **OPTIONS[name])).to("meta")
    x = torch.zeros(3, 10, 8, device="meta")
    is_first = torch.zeros(3, 10, dtype=torch.bool, device="meta")
    y, state = torso(x, torso.initial_state(3), is_first)
    torch.autograd.grad(y.sum(), list(torso.parameters()), allow_unused=True)
    acting = torso.prefill(state)
    for t in range(3):
        y = torso.decode_step(x[:, t], acting, is_first[:, t])
    assert {field.device.type for field in (y, *acting.state())} == {"meta"}


@pytest.mark.parametrize("name", OPTIONS)
def test_all_is_made_where_the_weights_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_numbers(monkeypatch)
    run(name)


def test_a_tensor_made_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_numbers(monkeypatch)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *n, device=None: arange(*n))  # noqa: ARG005
    with pytest.raises(RuntimeError, match="device"):
        run("delta")
