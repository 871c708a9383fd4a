"""Gates against their equations, written out once more, and their starts."""

import pytest
import torch
from torch import Tensor

from mtxl_rl.torso.gates import MogrifiedGate, build_gate
from mtxl_rl.torso.torso_config import GATES

BIASED = [gate for gate in GATES if gate not in ("residual", "input")]


def by_equation(kind: str, gate: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gate's equation in its paper, one matrix at a time."""
    w = {name: weight.detach() for name, weight in gate.named_parameters()}
    sigmoid, tanh, b = torch.sigmoid, torch.tanh, w.get("bias")
    if kind == "residual":
        return x + y
    if kind == "input":
        return sigmoid(x @ w["gate.weight"].T) * x + y
    if kind == "output":
        return x + sigmoid(x @ w["gate.weight"].T - b) * y
    if kind == "highway":
        opened = sigmoid(x @ w["gate.weight"].T + b)
        return opened * x + (1 - opened) * y
    if kind == "sigtanh":
        return x + sigmoid(y @ w["gate.weight"].T - b) * tanh(y @ w["transform.weight"].T)
    first, second, third = (y @ part.T for part in w["from_output.weight"].chunk(3))
    if kind == "brc":
        a = 1 + tanh(first + w["per_feature"][0] * x)
        c = sigmoid(second + w["per_feature"][1] * x + b)
        return c * x + (1 - c) * tanh(third + a * x)
    u_first, u_second = (x @ part.T for part in w["from_stream.weight"].chunk(2))
    if kind == "nbrc":
        a, c = 1 + tanh(first + u_first), sigmoid(second + u_second + b)
        return c * x + (1 - c) * tanh(third + a * x)
    r, z = sigmoid(first + u_first), sigmoid(second + u_second - b)
    return (1 - z) * x + z * tanh(third + (r * x) @ w["from_reset_stream.weight"].T)


@pytest.mark.parametrize("kind", GATES)
def test_a_gate_is_its_papers_equation(kind: str) -> None:
    torch.manual_seed(0)
    gate = build_gate(kind, 6, bias=0.7).double()
    for weight in gate.parameters():
        torch.nn.init.normal_(weight)
    x, y = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 6).double()
    torch.testing.assert_close(gate(x, y), by_equation(kind, gate, x, y))


@pytest.mark.parametrize("kind", BIASED)
def test_a_large_bias_makes_a_gate_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    gate = build_gate(kind, 6, bias=40.0).double()
    x, y = torch.randn(5, 6).double(), torch.randn(5, 6).double()
    torch.testing.assert_close(gate(x, y), x)


def test_biases_can_differ_by_feature() -> None:
    bias = torch.tensor([40.0, -40.0])
    gate = build_gate("nbrc", 2, bias=bias).double()
    x, y = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    moved = gate(x, y) - x
    assert moved[:, 0].abs().max() < 1e-12
    assert moved[:, 1].abs().min() > 1e-3


@pytest.mark.parametrize("kind", ["brc", "nbrc", "gru"])
def test_a_cells_state_stays_within_one(kind: str) -> None:
    torch.manual_seed(0)
    cell = build_gate(kind, 4, bias=0.0)
    state = torch.zeros(3, 4)
    for _ in range(200):
        state = cell(state, 10 * torch.randn(3, 4))
    assert 0.5 < state.abs().max() <= 1


def test_the_mogrifier_starts_as_the_gate_alone_and_then_modulates_by_turns() -> None:
    torch.manual_seed(0)
    gate = MogrifiedGate(4, build_gate("residual", 4, bias=2.0), num_rounds=2)
    assert isinstance(gate, MogrifiedGate)
    gate = gate.double()
    x, y = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    torch.testing.assert_close(gate(x, y), x + y)
    for weight in gate.parameters():
        torch.nn.init.normal_(weight)
    modulated = 2 * torch.sigmoid(gate.rounds[0](x)) * y
    expected = 2 * torch.sigmoid(gate.rounds[1](modulated)) * x + modulated
    torch.testing.assert_close(gate(x, y), expected)
