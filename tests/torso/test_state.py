"""The memory as a value, and what a torso says of a call that does not fit it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtxl_rl.torso import MemoryState, TorsoConfig, build_torso

SIZES = {"width": 8, "num_layers": 2, "num_heads": 2, "window_length": 4, "segment_length": 4}

# Each call that does not fit is refused by every kind of torso, for what its sentence says.
REFUSALS = """
import torch
from mtxl_rl.torso import TorsoConfig, build_torso

SIZES = {"width": 8, "num_layers": 2, "num_heads": 2, "window_length": 4, "segment_length": 4}
KINDS = ("transformer", "gru", "lstm", "none")

def torso_of(**options):
    return build_torso(TorsoConfig(**(SIZES | options)))

def says(words, call):
    try:
        call()
    except ValueError as error:
        assert words in str(error) and " given" in str(error), (words, error)
    else:
        raise AssertionError(words)

x, calm = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
for kind in KINDS:
    torso = torso_of(kind=kind)
    state = torso.initial_state(3)
    others = [
        torso_of(kind=kind, width=4), torso_of(kind=kind, num_layers=3),
        *(torso_of(kind=other) for other in KINDS if other != kind),
    ]
    if kind == "transformer":
        others += [torso_of(window_length=8), torso_of(long_term="slots"), torso_of(num_heads=4)]
        says("a timeline of shape [3, 2, 4, 8] was", lambda: torso.begin(state, num_steps=0))
        room = torch.zeros(3, 2, 4 + 5, 8)
        says("timeline of torch.float16", lambda: torso.begin(state, timeline=room.half()))
        says("timeline of type ndarray", lambda: torso.begin(state, timeline=room.numpy()))
        says("a timeline on meta", lambda: torso.begin(state, timeline=room.to("meta")))
        with torch.autocast("cpu", torch.bfloat16):
            says("timeline of torch.int64", lambda: torso.begin(state, timeline=room.long()))
            torso.begin(state, timeline=room.bfloat16())
            assert torso.begin(state, timeline=room).timeline is room
    for other in others:
        says("a state whose", lambda: torso(x, other.initial_state(3), calm))
        says("a state whose", lambda: torso.begin(other.initial_state(3)))
        memory = other.begin(other.initial_state(3))
        says("memory of another torso", lambda: torso.act(x[:, 0], memory, calm[:, 0]))
    says("a state of type tuple", lambda: torso(x, tuple(state), calm))
    says("holds floats", lambda: torso(x, state.apply(torch.Tensor.float), calm))
    says("x of shape [3, 5, 8]", lambda: torso(x, torso.initial_state(4), calm))
    says("x of shape [3, 8]", lambda: torso(x[:, 0], state, calm))
    says("x of shape [3, 0, 8]", lambda: torso(x[:, :0], state, calm[:, :0]))
    says("x of type ndarray", lambda: torso(x.numpy(), state, calm))
    says("x of torch.float64", lambda: torso(x.double(), state, calm))
    says("is_first of shape [3]", lambda: torso(x, state, calm[:, 0]))
    says("is_first of type ndarray", lambda: torso(x, state, calm.numpy()))
    double = state._replace(long_term=state.long_term.double())
    says("state.long_term of torch.float64", lambda: torso(x, double, calm))
    says("a flat state [", lambda: state.from_flat(state.to_flat()[0]))
    says("must be of float32 or float64", lambda: state.from_flat(state.to_flat().bfloat16()))
    says("a flat state ndarray", lambda: state.from_flat(state.to_flat().numpy()))
    memory = torso.begin(state)
    says("memory of type MemoryState", lambda: torso.act(x[:, 0], state, calm[:, 0]))
    says("x of shape [1, 8]", lambda: torso.act(x[:1, 0], memory, calm[:1, 0]))
    says("x of shape [3, 5, 8]", lambda: torso.act(x, memory, calm))
    says("x of torch.float64", lambda: torso.act(x[:, 0].double(), memory, calm[:, 0]))
    says("is_first of shape [1]", lambda: torso.act(x[:, 0], memory, calm[:1, 0]))
    with torch.autocast("cpu", torch.bfloat16):  # which chooses types itself
        torso(x.bfloat16(), state, calm)
        torso.act(x[:, 0].bfloat16(), torso.begin(state), calm[:, 0])
"""


def test_a_call_that_does_not_fit_is_refused_in_one_sentence() -> None:
    # In a process of its own: here, the type checker of the tests would refuse the calls first.
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_acting_goes_on_from_a_memory_of_an_equal_configuration() -> None:
    one, other = build_torso(TorsoConfig(**SIZES)), build_torso(TorsoConfig(**SIZES))
    memory = one.begin(one.initial_state(1))
    other.act(torch.zeros(1, 8), memory, torch.zeros(1, dtype=torch.bool))


def some_state() -> MemoryState:
    """A state of 3 rows, 6 steps on."""
    torso = build_torso(TorsoConfig(**SIZES))
    calm = torch.zeros(3, 6, dtype=torch.bool)
    return torso(torch.randn(3, 6, 8), torso.initial_state(3), calm)[1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_rows_are_reset_by_zeros_and_ones_of_any_type(dtype: torch.dtype) -> None:
    state = some_state()
    state = state._replace(window=state.window.index_fill(0, torch.tensor([1]), torch.nan))
    after = state.reset(torch.tensor([0, 1, 0]).to(dtype))
    for before, field in zip(state, after, strict=True):
        assert torch.equal(field[::2], before[::2])
        assert not field[1].any()


def test_a_reset_that_does_not_mark_each_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of shape \[1\] were given, but 3 rows"):
        some_state().reset(torch.tensor([2]))


def test_torch_loads_a_saved_state_as_it_loads_weights(tmp_path: Path) -> None:
    state = some_state()
    torch.save({"memory": state}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)["memory"]
    assert isinstance(loaded, MemoryState)
    for found, field in zip(loaded, state, strict=True):
        assert torch.equal(found, field)


def test_a_flat_state_comes_back_by_a_state_of_any_number_of_rows() -> None:
    state = some_state()
    flat = state.to_flat()
    for like in (state, state.rows([0]), state.rows([])):
        for field, again in zip(state, like.from_flat(flat), strict=True):
            assert torch.equal(field, again)


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm", "none"])
def test_a_state_made_under_autocast_goes_on_outside_of_it(kind: str) -> None:
    torso = build_torso(TorsoConfig(kind=kind, **SIZES))
    x, calm = torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = torso(x, torso.initial_state(2), calm)
    y, _ = torso(x, state, calm)
    assert y.isfinite().all()


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm", "none"])
def test_acting_from_a_state_with_gradients_keeps_no_graph(kind: str) -> None:
    torso = build_torso(TorsoConfig(kind=kind, **SIZES))
    x, calm = torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    _, state = torso(x, torso.initial_state(2), calm)
    memory = torso.begin(state)
    torso.act(x[:, 0], memory, calm[:, 0])
    assert not any(field.requires_grad for field in memory.state())


@pytest.mark.parametrize("long_term", ["delta", "linear", "slots", "tokens", "none"])
def test_acting_leaves_the_state_that_it_began_from_alone(long_term: str) -> None:
    decay = "fixed" if long_term == "linear" else "none"
    torso = build_torso(TorsoConfig(**SIZES, long_term=long_term, decay=decay))
    x = torch.randn(2, 6, 8)
    _, state = torso(x, torso.initial_state(2), torch.zeros(2, 6, dtype=torch.bool))
    memory = torso.begin(state)
    versions = [part._version for part in state]
    torso.act(x[:, 0], memory, torch.tensor([True, False]))
    # A tensor that was changed in place no longer serves a backward pass, whatever is in it.
    assert [part._version for part in state] == versions


@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("decay", ["none", "fixed"])
def test_a_torso_that_was_cast_and_cast_back_knows_its_constants(decay: str, position: str) -> None:
    options = {"decay": decay, "long_term": "linear" if decay == "fixed" else "delta"}
    options["position"] = position
    torso = build_torso(TorsoConfig(**SIZES, **options))
    with torch.no_grad():
        for weight in torso.parameters():  # bfloat16 keeps these numbers
            weight.copy_(torch.randint_like(weight, -8, 9) / 16)
    x, calm = torch.randn(2, 9, 8), torch.zeros(2, 9, dtype=torch.bool)
    expected, _ = torso(x, torso.initial_state(2), calm)
    found, _ = torso.bfloat16().float()(x, torso.initial_state(2), calm)
    assert torch.equal(found, expected)
    empty = torso.to("meta").to_empty(device="cpu")
    for before, after in zip(build_torso(torso.config).buffers(), empty.buffers(), strict=True):
        assert torch.equal(before, after)


SYSTEMS = [
    *({"long_term": kind} for kind in ("delta", "agalite", "slots", "tokens", "none")),
    {"long_term": "linear", "decay": "free"},
    *({"kind": kind} for kind in ("gru", "lstm", "none")),
]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_a_nan_ends_with_its_episode(system: dict) -> None:
    torso = build_torso(TorsoConfig(**({} if "kind" in system else SIZES), **system))
    width = torso.config.width
    x, is_first = torch.randn(2, 12, width), torch.zeros(2, 12, dtype=torch.bool)
    x[0, 3], is_first[0, 6] = torch.nan, True
    memory = torso.begin(torso.initial_state(2))
    y = torch.stack([torso.act(x[:, t], memory, is_first[:, t]) for t in range(12)], dim=1)
    assert y[1].isfinite().all()
    assert not y[0, 3].isfinite().any()
    assert y[0, 6:].isfinite().all()
    alone = torso.begin(torso.initial_state(1))
    for t in range(6, 12):
        torch.testing.assert_close(torso.act(x[:1, t], alone, is_first[:1, t])[0], y[0, t])
    assert all(field.isfinite().all() for field in memory.state())
    # On sequences what a window hides is not forgotten at once, but a state that is reset is clean.
    _, state = torso(x[:, :6], torso.initial_state(2), is_first[:, :6])
    after, state = torso(x[:, 6:9], state.reset(is_first[:, 6]), is_first[:, 6:9])
    torch.testing.assert_close(after, y[:, 6:9])
    assert all(field.isfinite().all() for field in state)
