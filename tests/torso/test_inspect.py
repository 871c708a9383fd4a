"""The diagnostics of a torso."""

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
    """A torso in float64, 21 steps of 2 rows, and their inspection."""
    torch.manual_seed(0)
    sizes = {"width": 8, "num_heads": 2, "window_length": 4, "segment_length": 3}
    torso = MemoryTransformer(TorsoConfig(**(sizes | SYSTEMS[name] | options))).double()
    x, is_first = torch.randn(2, 21, 8).double(), torch.rand(2, 21) < 0.1
    state = torso.initial_state(2)
    inspection = torso.inspect(x, state, is_first)
    y, after = torso(x, state, is_first)
    torch.testing.assert_close(inspection.y, y)
    for actual, expected in zip(inspection.state, after, strict=True):
        torch.testing.assert_close(actual, expected)
    return torso, x, inspection


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_weights_of_a_step_sum_to_one_per_head(name: str) -> None:
    _, _, inspection = inspected(name)
    assert len(inspection.diagnostics) == 2
    for layer in inspection.diagnostics:
        weights = torch.cat([layer[key] for key in layer if key.startswith("attention/")], -1)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 21, 2).double())
        assert ("attention/slots" in layer) == (name in ("slots", "shared", "tokens"))
        assert layer["attention/window"].shape == (2, 21, 2, 5)
        assert not any(field.requires_grad for field in layer.values())


@pytest.mark.parametrize("name", ["delta", "linear", "agalite"])
def test_retention_of_a_matrix_is_a_fraction_per_step_and_head(name: str) -> None:
    _, _, inspection = inspected(name)
    for layer in inspection.diagnostics:
        for key in ("memory/retention", "memory/strength"):
            assert layer[key].shape == (2, 21, 2)
            assert (layer[key] >= 0).all()
        assert 0 < layer["memory/retention"].min() <= layer["memory/retention"].max() < 1


def test_the_retention_of_retnets_heads_is_the_papers() -> None:
    _, _, inspection = inspected("linear")
    retention = inspection.diagnostics[0]["memory/retention"]
    expected = torch.tensor([1 - 2**-5, 1 - 2**-6]).double().expand_as(retention)
    torch.testing.assert_close(retention, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["slots", "shared"])
def test_a_closed_slot_keeps_its_value(name: str) -> None:
    torso, x, _ = inspected(name)
    memory = torso.layers[0].memory
    with torch.no_grad():
        memory.cell.bias[0] = 60.0
        memory.cell.bias[1] = -60.0
    is_first = torch.zeros(2, 21, dtype=torch.bool)
    layer = torso.inspect(x, torso.initial_state(2), is_first).diagnostics[0]
    assert layer["memory/moved"].shape == (2, 7, 3)
    assert layer["memory/moved"][..., 0].max() < 1e-12
    assert layer["memory/moved"][..., 1].min() > 1e-3
    torch.testing.assert_close(
        layer["memory/retention"][..., :2].mean((0, 1)), torch.tensor([1.0, 0.0]).double()
    )


@pytest.mark.parametrize("read", ["parallel", "sequential"])
def test_open_gates_move_the_stream_and_closed_gates_do_not(read: str) -> None:
    moved = []
    for bias in (-60.0, 60.0):
        _, _, inspection = inspected("delta", gate_bias=bias, read=read)
        keys = ("moved/attention", "moved/read", "moved/feedforward")
        moved.append(torch.stack([inspection.diagnostics[0][key] for key in keys]))
    attention, readout, feedforward = moved[0]
    assert attention.min() > 0.1
    assert feedforward.min() > 0.1
    assert (readout.min() if read == "sequential" else readout.max()) > 0.1
    # A parallel readout of an empty memory is zero, while an open gate of a sequential one still
    # replaces the stream.
    assert (readout[:, 0].max() < 1e-12) == (read == "parallel")
    assert moved[1].max() < 1e-12
