"""torch.compile and torch.export of whole torsos, in a session without shape checks."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from mtxl_rl.agents.returns import gae
from mtxl_rl.torso import MemoryState, MemoryTransformer, TorsoConfig, build_torso
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig

# While it compiles, torch warns about its own code.
pytestmark = [pytest.mark.compile, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPTIONS: dict[str, dict[str, Any]] = {
    "delta": {},
    "delta, parallel": {"read": "parallel"},
    "agalite": {"long_term": "agalite"},
    "slots": {"long_term": "slots"},
    "shared": {"long_term": "slots", "slots": SlotsConfig(is_shared=True)},
    "tokens": {"long_term": "tokens", "position": "rotary"},
    "glu": {"long_term": "none", "sublayers": SublayersConfig(glu=True)},
}
SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "window_length": 4, "segment_length": 4}
INDUCTOR = ["delta", "agalite", "slots", "shared", "tokens", "glu"]


class Case:
    """A torso in the middle of an episode, the following steps, and their outputs in eager mode."""

    def __init__(self, name: str, num_steps: int) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.torso = MemoryTransformer(TorsoConfig(**SIZES, **OPTIONS[name]))
        self.x = torch.randn(2, num_steps, 8)
        self.is_first = torch.rand(2, num_steps) < 0.2
        state = self.torso.initial_state(2)
        _, state = self.torso(torch.randn(2, 6, 8), state, torch.zeros(2, 6, dtype=torch.bool))
        self.state = state.detach()
        self.y, self.after = self.torso(self.x, self.state, self.is_first)

    def check(self, y: Tensor, after: MemoryState) -> None:
        """Compare outputs and the state after them with those of eager mode."""
        torch.testing.assert_close(y, self.y)
        for actual, expected in zip(after, self.after, strict=True):
            torch.testing.assert_close(actual, expected)

    def check_gradients(self, y: Tensor) -> None:
        """Compare the gradients of all weights with those of eager mode."""
        weight = torch.randn_like(y)
        weights = dict(self.torso.named_parameters())
        expected, actual = (
            torch.autograd.grad(
                (out * weight).sum(), list(weights.values()), materialize_grads=True
            )
            for out in (self.y, y)
        )
        for name, eager, compiled in zip(weights, expected, actual, strict=True):
            torch.testing.assert_close(
                compiled, eager, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward_is_one_graph(name: str, num_steps: int) -> None:
    case = Case(name, num_steps)
    run = torch.compile(case.torso, fullgraph=True, backend="aot_eager")
    y, after = run(case.x, case.state, case.is_first)
    case.check(y, after)
    case.check_gradients(y)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_computes_the_same(name: str, num_steps: int) -> None:
    case = Case(name, num_steps)
    y, after = torch.compile(case.torso, fullgraph=True)(case.x, case.state, case.is_first)
    case.check(y, after)
    case.check_gradients(y)


@pytest.mark.parametrize("name", OPTIONS)
def test_one_graph_serves_every_decode_step(name: str) -> None:
    case = Case(name, 10)
    step = torch.compile(
        MemoryTransformer.decode_step, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    cache = case.torso.prefill(case.state, num_steps=3)
    outputs = []
    for t in range(10):
        with torch.compiler.set_stance("fail_on_recompile" if t else "default"):
            outputs.append(step(case.torso, case.x[:, t], cache, case.is_first[:, t]))
    case.check(torch.stack(outputs, 1), cache.state())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delta", "shared"])
@pytest.mark.parametrize("num_steps", [1, 10])
def test_an_exported_torso_computes_the_same_for_any_batch_size(name: str, num_steps: int) -> None:
    case = Case(name, num_steps)
    rows = {0: torch.export.Dim("batch", max=4096)}
    shapes = (rows, MemoryState(*[rows] * 5), rows)
    several = [part.repeat_interleave(3, 0) for part in (case.x, *case.state, case.is_first)]
    arguments = several[0], MemoryState(*several[1:-1]), several[-1]
    exported = torch.export.export(case.torso, arguments, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    # In torch 2.13 the names of its guards clash: state.window and state.window_length.
    run = torch.export.load(file).module(check_guards=False)
    case.check(*run(case.x, case.state, case.is_first))


@pytest.mark.parametrize("kind", ["transformer", "gru"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_is_first_may_have_any_dtype(kind: str, dtype: torch.dtype) -> None:
    torso = build_torso(TorsoConfig(kind=kind, **(SIZES | {"width": 16})))
    x, is_first = torch.randn(2, 8, 16), torch.rand(2, 8) < 0.4
    expected, _ = torso(x, torso.initial_state(2), is_first)
    marks = is_first.to(dtype)
    y, _ = torso(x, torso.initial_state(2), marks)
    cache = torso.prefill(torso.initial_state(2))
    steps = torch.stack([torso.decode_step(x[:, t], cache, marks[:, t]) for t in range(8)], 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-5)


def test_returns_take_terminated_of_any_dtype() -> None:
    ones = torch.ones(1, 3)
    advantage = gae(ones, ones.to(torch.uint8), ones.bool(), 0 * ones, 0 * ones[:, 0], gamma=1.0,
                    gae_lambda=1.0)  # fmt: skip
    assert torch.equal(advantage, ones)
