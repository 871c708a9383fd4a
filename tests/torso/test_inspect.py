"""What a torso tells about itself."""

import pytest
import torch

from mtxl_rl.torso import MemoryTransformer, TorsoConfig
from mtxl_rl.torso.memory_transformer import Inspection
from mtxl_rl.torso.torso_config import SlotsConfig

SYSTEMS: dict[str, dict] = {
    "delta": {"decay": "coupled"},
    "linear": {"long_term": "linear", "decay": "fixed"},
    "agalite": {"long_term": "agalite"},
    "slots": {"long_term": "slots", "slots": SlotsConfig(num_slots=3)},
    "shared": {"long_term": "slots", "slots": SlotsConfig(num_slots=3, is_shared=True)},
    "tokens": {"long_term": "tokens"},
    "none": {"long_term": "none"},
}


def inspected(name: str, **options: object) -> tuple[MemoryTransformer, torch.Tensor, Inspection]:
    """A torso in float64, 21 steps of 2 rows, and what it tells of them."""
    torch.manual_seed(0)
    sizes = {"width": 8, "num_heads": 2, "window_length": 4, "segment_length": 3}
    torso = MemoryTransformer(TorsoConfig(**(sizes | SYSTEMS[name] | options))).double()
    x, is_first = torch.randn(2, 21, 8).double(), torch.rand(2, 21) < 0.1
    state = torso.initial_state(2)
    found = torso.inspect(x, state, is_first)
    y, after = torso(x, state, is_first)
    assert torch.equal(found.y, y)
    assert all(torch.equal(a, b) for a, b in zip(found.state, after, strict=True))
    return torso, x, found


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_weights_of_a_step_sum_to_one_per_head(name: str) -> None:
    _, _, found = inspected(name)
    assert len(found.diagnostics) == 2
    for layer in found.diagnostics:
        weights = torch.cat([layer[key] for key in layer if key.startswith("attention/")], -1)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 21, 2).double())
        assert ("attention/slots" in layer) == (name in ("slots", "shared", "tokens"))
        assert layer["attention/window"].shape == (2, 21, 2, 5)
        assert not any(field.requires_grad for field in layer.values())


@pytest.mark.parametrize("name", ["delta", "linear", "agalite"])
def test_retention_of_a_matrix_is_a_fraction_per_step_and_head(name: str) -> None:
    _, _, found = inspected(name)
    for layer in found.diagnostics:
        for key in ("memory/retention", "memory/strength"):
            assert layer[key].shape == (2, 21, 2)
            assert (layer[key] >= 0).all()
        assert 0 < layer["memory/retention"].min() <= layer["memory/retention"].max() < 1


def test_retnets_heads_retain_what_the_paper_says() -> None:
    _, _, found = inspected("linear")
    retention = found.diagnostics[0]["memory/retention"]
    expected = torch.tensor([1 - 2**-5, 1 - 2**-6]).double().expand_as(retention)
    torch.testing.assert_close(retention, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["slots", "shared"])
def test_a_closed_slot_retains_all_and_does_not_move(name: str) -> None:
    torso, x, _ = inspected(name)
    memory = torso.layers[0].memory
    with torch.no_grad():
        memory.cell.bias[0] = 60.0
        memory.cell.bias[1] = -60.0
    calm = torch.zeros(2, 21, dtype=torch.bool)
    layer = torso.inspect(x, torso.initial_state(2), calm).diagnostics[0]
    assert layer["memory/moved"].shape == (2, 7, 3)
    assert layer["memory/moved"][..., 0].max() < 1e-12
    assert layer["memory/moved"][..., 1].min() > 1e-3
    torch.testing.assert_close(
        layer["memory/retention"][..., :2].mean((0, 1)), torch.tensor([1.0, 0.0]).double()
    )


@pytest.mark.parametrize("read", ["parallel", "sequential"])
def test_an_open_gate_moves_the_stream_and_a_closed_one_does_not(read: str) -> None:
    moved = []
    for bias in (-60.0, 60.0):
        _, _, found = inspected("delta", gate_bias=bias, read=read)
        keys = ("moved/attention", "moved/read", "moved/feedforward")
        moved.append(torch.stack([found.diagnostics[0][key] for key in keys]))
    attended, said, fed = moved[0]
    assert attended.min() > 0.1
    assert fed.min() > 0.1
    assert (said.min() if read == "sequential" else said.max()) > 0.1
    # Beside the attention an empty memory says nothing, and behind a gate of its own the rest of
    # the stream is cut even so.
    assert (said[:, 0].max() == 0) == (read == "parallel")
    assert moved[1].max() < 1e-12
