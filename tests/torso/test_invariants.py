"""The invariants of the torso, over random shapes, cuts and resets, in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtxl_rl.torso import (
    Cache,
    MemoryState,
    MemoryTransformer,
    Torso,
    TorsoConfig,
    build_torso,
)
from mtxl_rl.torso.torso_config import GATES, POSITIONS, SlotsConfig, TokensConfig

TOLERANCE = 1e-9
SLOTS, TOKENS = {"long_term": "slots"}, {"long_term": "tokens"}
SYSTEMS: dict[str, dict] = {
    "delta": {},
    "delta, coupled decay": {"decay": "coupled"},
    "delta, free decay": {"decay": "free"},
    "delta, parallel": {"read": "parallel"},
    "delta in some layers": {"num_layers": 3, "memory_layers": [1, 3]},
    "delta, gradient checkpointing": {"gradient_checkpointing": True},
    "linear, fixed decay": {"long_term": "linear", "decay": "fixed"},
    "linear, free decay": {"long_term": "linear", "decay": "free"},
    "agalite": {"long_term": "agalite"},
    "agalite, parallel": {"long_term": "agalite", "read": "parallel"},
    "slots": SLOTS | {"slots": SlotsConfig(num_slots=3)},
    "slots, BRC": SLOTS | {"slots": SlotsConfig(num_slots=2, cell="brc")},
    "slots, GRU, two iterations": SLOTS
    | {"slots": SlotsConfig(num_slots=3, cell="gru", write_iterations=2)},
    "slots, shared": SLOTS | {"slots": SlotsConfig(num_slots=3, is_shared=True)},
    "slots, shared by some layers": SLOTS
    | {"num_layers": 3, "memory_layers": [2, 3], "slots": SlotsConfig(is_shared=True)},
    "slots, shared, gradient checkpointing": SLOTS
    | {"gradient_checkpointing": True, "slots": SlotsConfig(num_slots=3, is_shared=True)},
    "slots, rotary": SLOTS | {"position": "rotary"},
    "MemTransformer": TOKENS | {"tokens": TokensConfig(num_tokens=3)},
    "MemCtrl": TOKENS | {"tokens": TokensConfig(num_tokens=2, separate_control=True)},
    "MemBottleneck": TOKENS | {"tokens": TokensConfig(num_tokens=2, bottleneck=True)},
    "tokens, all-attention, residual": TOKENS
    | {"all_attention": True, "num_persistent": 2, "gate": "residual"},
    "gtrxl": {"long_term": "none"},
    "transformer-xl": {"long_term": "none", "gate": "residual", "num_persistent": 0},
    "all-attention": {"all_attention": True, "num_persistent": 5},
    **{f"position {position}": {"position": position} for position in POSITIONS},
    **{f"gate {gate}": {"gate": gate} for gate in GATES},
    "odometry": {"odometry": True},
    "odometry, shared slots": SLOTS | {"odometry": True, "slots": SlotsConfig(is_shared=True)},
    "mogrifier": {"mogrifier_rounds": 3},
    "gru": {"kind": "gru"},
    "lstm": {"kind": "lstm"},
    "mlp": {"kind": "mlp"},
}
few = settings(max_examples=2, deadline=None)
draws = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 10**6))


class Case:
    """A random torso with random features and resets, from few numbers."""

    def __init__(self, name: str, drawn: tuple[int, int, int]) -> None:
        segment, extra, seed = drawn
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        options = {
            "width": 8,
            "num_layers": 1 + seed % 3,
            "num_heads": 2,
            "window_length": segment + extra,
            "segment_length": segment,
            "num_persistent": seed % 2,
        }
        self.config = TorsoConfig(**(options | SYSTEMS[name]))
        self.torso = build_torso(self.config).double()
        self.batch, self.steps = 3, 5 + seed % 13
        self.x = torch.randn(self.batch, self.steps, 8).double()
        self.is_first = torch.rand(self.batch, self.steps) < 0.12

    def cuts(self) -> list[slice]:
        """The steps in random pieces."""
        slices, begin = [], 0
        while begin < self.steps:
            size = int(torch.randint(1, 9, (), generator=self.generator))
            slices.append(slice(begin, min(begin + size, self.steps)))
            begin += size
        return slices

    def forward(
        self, x: Tensor, state: MemoryState, is_first: Tensor
    ) -> tuple[Tensor, MemoryState]:
        """The torso's whole-sequence path."""
        y, after = self.torso(x, state, is_first)
        return y, after


def systems(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for every system, without shape checks, which would double the time."""
    for_each = pytest.mark.parametrize("name", SYSTEMS)
    marked: Callable[..., None] = pytest.mark.unchecked(for_each(test))
    return marked


def decode(torso: Torso, x: Tensor, cache: Cache, is_first: Tensor) -> Tensor:
    """The outputs of T decode steps, [B, T, D]."""
    steps = range(x.shape[1])
    return torch.stack([torso.decode_step(x[:, t], cache, is_first[:, t]) for t in steps], dim=1)


def assert_equal(left: MemoryState, right: MemoryState) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@systems
@few
@given(draws)
def test_any_cut_gives_equal_outputs_states_and_gradients(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    weight = torch.randn(case.batch, case.steps, 8).double()
    results = []
    for cuts in ([slice(0, case.steps)], case.cuts(), [slice(t, t + 1) for t in range(case.steps)]):
        x = case.x.clone().requires_grad_()
        state, parts = case.torso.initial_state(case.batch), []
        for cut in cuts:
            y, state = case.forward(x[:, cut], state, case.is_first[:, cut])
            parts.append(y)
        (torch.cat(parts, 1) * weight).sum().backward()
        assert x.grad is not None
        results.append((torch.cat(parts, 1).detach(), state.detach(), x.grad))
    for y, state, gradient in results[1:]:
        torch.testing.assert_close(y, results[0][0], rtol=TOLERANCE, atol=TOLERANCE)
        assert_equal(state, results[0][1])
        torch.testing.assert_close(gradient, results[0][2], rtol=TOLERANCE, atol=TOLERANCE)


@systems
@few
@given(draws)
def test_acting_step_by_step_equals_the_sequence(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    y, after = case.forward(case.x, case.torso.initial_state(case.batch), case.is_first)
    cache = case.torso.prefill(case.torso.initial_state(case.batch), num_steps=4)
    restart = int(torch.randint(0, case.steps, (), generator=case.generator))
    outputs = []
    for t in range(case.steps):
        if t == restart:
            cache = case.torso.prefill(cache.state(), num_steps=3)
        outputs.append(case.torso.decode_step(case.x[:, t], cache, case.is_first[:, t]))
    torch.testing.assert_close(torch.stack(outputs, 1), y, rtol=TOLERANCE, atol=TOLERANCE)
    assert_equal(cache.state(), after)


@systems
@few
@given(draws)
def test_rows_that_step_alone_equal_the_sequence(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    y, after = case.forward(case.x, case.torso.initial_state(case.batch), case.is_first)
    cache = case.torso.prefill(case.torso.initial_state(case.batch), num_steps=2)
    num_done, outputs = [0] * case.batch, torch.zeros_like(y)
    while min(num_done) < case.steps:
        order = torch.randperm(case.batch, generator=case.generator).tolist()
        rows = [row for row in order if num_done[row] < case.steps]
        rows = rows[: int(torch.randint(1, case.batch + 1, (), generator=case.generator))]
        part = cache.rows(torch.tensor(rows))
        for _ in range(1 + case.steps % 2):  # A part may take several steps.
            if any(num_done[row] == case.steps for row in rows):
                break
            at = (rows, [num_done[row] for row in rows])
            outputs[at] = case.torso.decode_step(case.x[at], part, case.is_first[at])
            num_done = [count + (row in rows) for row, count in enumerate(num_done)]
        cache.copy_rows_(torch.tensor(rows), part)
    torch.testing.assert_close(outputs, y, rtol=TOLERANCE, atol=TOLERANCE)
    assert_equal(cache.state(), after)


def test_acting_equals_the_sequence_within_1e5_in_float32() -> None:
    case = Case("delta", (4, 3, 14))
    torso = case.torso.float()
    x = torch.randn(3, 200, 8)
    is_first = torch.rand(3, 200) < 0.02
    y, _ = torso(x, torso.initial_state(3), is_first)
    cache = torso.prefill(torso.initial_state(3), num_steps=64)
    outputs = decode(torso, x, cache, is_first)
    assert (outputs - y).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name", ["delta", "linear, free decay", "agalite", "slots", "MemTransformer"]
)
@pytest.mark.parametrize("prefills_inside", [True, False])
def test_acting_equals_the_sequence_within_2_percent_in_bfloat16(
    name: str,
    prefills_inside: bool,
) -> None:
    case = Case(name, (4, 3, 14))
    torso = case.torso.float()
    x, is_first = torch.randn(3, 40, 8), torch.rand(3, 40) < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = torso(x, torso.initial_state(3), is_first)
        with torch.autocast("cpu", enabled=prefills_inside):
            cache = torso.prefill(torso.initial_state(3), num_steps=16)
        outputs = decode(torso, x, cache, is_first)
    assert cache.long_term.dtype == torch.float32
    assert (outputs - y).norm() < 0.02 * y.norm()


@systems
def test_bfloat16_weights_act_and_learn_within_3_percent_of_float64(name: str) -> None:
    case = Case(name, (4, 3, 14))
    x, is_first = case.x.bfloat16(), case.is_first
    torso = case.torso.bfloat16()
    y, after = torso(x, torso.initial_state(case.batch), is_first)
    cache = torso.prefill(torso.initial_state(case.batch), num_steps=8)
    outputs = decode(torso, x, cache, is_first)
    assert y.dtype == after.window.dtype == torch.bfloat16
    assert after.long_term.dtype == cache.state().long_term.dtype == torch.float32
    exact, _ = torso.double()(x.double(), torso.initial_state(case.batch), is_first)
    for actual in (outputs, y):
        assert (actual - exact).norm() < 0.03 * exact.norm()


@systems
@few
@given(draws)
def test_nothing_before_a_reset_changes_anything_after_it(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    at = int(torch.randint(1, case.steps, (), generator=case.generator))
    case.is_first[:, at] = True
    other = case.x.clone()
    other[:, :at] = torch.randn(case.batch, at, 8).double()
    start = case.torso.initial_state(case.batch)
    y, state = case.forward(case.x, start, case.is_first)
    z, other_state = case.forward(other, start, case.is_first)
    fresh, fresh_state = case.forward(case.x[:, at:], start, case.is_first[:, at:])
    torch.testing.assert_close(y[:, at:], z[:, at:], rtol=TOLERANCE, atol=TOLERANCE)
    assert_equal(state, other_state)
    torch.testing.assert_close(y[:, at:], fresh, rtol=TOLERANCE, atol=TOLERANCE)
    assert_equal(state, fresh_state)


@systems
@few
@given(draws)
def test_rows_never_mix_and_the_future_never_leaks_back(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    start = case.torso.initial_state(case.batch)
    y, _ = case.forward(case.x, start, case.is_first)
    other = case.x.clone()
    at = int(torch.randint(0, case.steps, (), generator=case.generator))
    other[0, at:] = torch.randn(case.steps - at, 8).double()
    z, _ = case.forward(other, start, case.is_first)
    torch.testing.assert_close(y[1:], z[1:], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(y[0, :at], z[0, :at], rtol=TOLERANCE, atol=TOLERANCE)
    assert not torch.allclose(y[0, at], z[0, at])


@systems
@few
@given(draws)
def test_zeroing_a_row_of_the_state_is_a_reset_of_that_row(name: str, drawn: tuple) -> None:
    case = Case(name, drawn)
    _, state = case.forward(case.x, case.torso.initial_state(case.batch), case.is_first)
    following = torch.randn(case.batch, case.steps, 8).double()
    reset = torch.zeros(case.batch, case.steps, dtype=torch.bool)
    reset[0, 0] = True
    by_flag, flag_state = case.forward(following, state, reset)
    flat = state.to_flat()
    flat[0] = 0
    for zeroed in (state.reset(reset[:, 0]), state.from_flat(flat)):
        by_zero, zero_state = case.forward(following, zeroed, torch.zeros_like(reset))
        torch.testing.assert_close(by_flag[0], by_zero[0], rtol=TOLERANCE, atol=TOLERANCE)
        assert_equal(flag_state.rows([0]), zero_state.rows([0]))


MEMORIES = [
    name for name in SYSTEMS if name.startswith(("delta", "linear", "agalite", "slots", "Mem"))
]


@pytest.mark.parametrize("name", MEMORIES)
def test_gradients_reach_a_step_many_segments_earlier(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "window_length": 4, "segment_length": 4}
    config = TorsoConfig(**(sizes | SYSTEMS[name]))
    steps = 10 * config.segment_length
    torso = build_torso(config).double()
    x = torch.randn(1, steps, 8).double().requires_grad_()
    state = torso.initial_state(1)
    for begin in range(0, steps, 10):  # four calls: the forward never detaches
        y, state = torso(x[:, begin : begin + 10], state, torch.zeros(1, 10, dtype=torch.bool))
    y[0, -1, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0].abs().max() > 0


def test_without_long_term_memory_gradients_stop_at_the_window() -> None:
    torch.manual_seed(0)
    torso = MemoryTransformer(
        TorsoConfig(
            width=8, num_layers=1, num_heads=2, window_length=4, segment_length=4, long_term="none"
        )
    ).double()
    x = torch.randn(1, 40, 8).double().requires_grad_()
    y, _ = torso(x, torso.initial_state(1), torch.zeros(1, 40, dtype=torch.bool))
    y[0, -1, 0].backward()
    assert x.grad is not None
    assert x.grad[0, :35].abs().max() == 0
    assert x.grad[0, 35].abs().max() > 0


def test_gates_are_close_to_the_identity_at_initialisation() -> None:
    torch.manual_seed(0)
    torso = MemoryTransformer(TorsoConfig(width=64, num_layers=1, num_heads=4)).double()
    x = torch.randn(4, 32, 64).double()
    first = torch.zeros(4, 32, dtype=torch.bool)
    first[:, 0] = True
    y, _ = torso(x, torso.initial_state(4), first)
    similarity = torch.cosine_similarity(y, torso.norm(x), dim=-1)
    assert similarity.min() > 0.7, similarity.min()


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.slow
def test_memories_stay_bounded_over_a_million_steps(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "window_length": 256,
             "segment_length": 256}  # fmt: skip
    torso = build_torso(TorsoConfig(**(sizes | SYSTEMS[name])))
    state, is_first = torso.initial_state(1), torch.zeros(1, 16384, dtype=torch.bool)
    early = 0.0
    with torch.no_grad():
        for call in range(62):  # 62 x 16,384 > 1e6
            y, state = torso(torch.randn(1, 16384, 8), state, is_first)
            early = early or float(state.long_term.norm())
            assert y.isfinite().all()
            assert state.long_term.norm() < 3 * early + 10, call


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_heads": 3}, "must divide torso.width"),
        ({"window_length": 8, "segment_length": 9}, "must be at most"),
        ({"long_term": "slot"}, "choose one of delta, linear, agalite, slots, tokens, none"),
        ({"long_term": "none", "decay": "free"}, "choose torso.decay=none"),
        ({"long_term": "linear"}, "choose torso.decay=fixed or free"),
        ({"decay": "fixed"}, "choose torso.decay=none or coupled or free"),
        ({"position": "absolute"}, "choose one of sinusoidal, learned, rotary, none"),
        ({"position": "rotary", "width": 12}, "try one of"),
        ({"all_attention": True, "num_persistent": 0}, "num_persistent of 1 or more"),
        ({"memory_layers": [3]}, "1 .. 2 in rising order"),
        ({"memory_layers": [2, 1]}, "in rising order"),
        ({"memory_layers": [1], "long_term": "none"}, "choose a long-term memory"),
        ({"slots": SlotsConfig(num_slots=3)}, "set torso.long_term=slots"),
        ({"long_term": "slots", "tokens": TokensConfig(bottleneck=True)}, "long_term=tokens"),
        ({"kind": "lstm", "position": "none"}, "has no effect with torso.kind=lstm"),
        ({"width": 0}, "must be 1 or more"),
        ({"gate": "grue"}, "choose one of residual, input, output"),
        (
            {"kind": "gru", "gate": "highway"},
            "torso.gate=highway has no effect with torso.kind=gru",
        ),
        ({"num_parameters": -1}, "must be 0 or more"),
    ],
)
def test_illegal_options_are_refused_with_the_legal_ones(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorsoConfig(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", SYSTEMS)
def test_outputs_gradients_and_acting_are_equal_on_gpu_and_cpu(name: str) -> None:
    case = Case(name, (4, 3, 14))
    weight = torch.randn_like(case.x)
    fields_by_device: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        torso = case.torso.to(device)
        x = case.x.to(device).detach().requires_grad_()
        is_first = case.is_first.to(device)
        y, after = torso(x, torso.initial_state(case.batch), is_first)
        (gradient,) = torch.autograd.grad((y * weight.to(device)).sum(), x)
        cache = torso.prefill(torso.initial_state(case.batch), num_steps=4)
        steps = decode(torso, x.detach(), cache, is_first)
        fields = [y, gradient, steps, *after, *cache.state()]
        assert {field.device.type for field in fields} == {device}
        fields_by_device.append([field.detach().cpu() for field in fields])
    for cpu, gpu in zip(*fields_by_device, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=TOLERANCE, atol=TOLERANCE)
