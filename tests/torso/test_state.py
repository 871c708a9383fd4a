"""The memory as a value, and the refusal of arguments that do not match a torso."""

from pathlib import Path

import pytest
import torch

from mtxl_rl.torso import MemoryState, Torso, TorsoConfig, build_torso

SIZES = {"width": 8, "num_layers": 2, "num_heads": 2, "window_length": 4, "segment_length": 4}

KINDS = ("transformer", "gru", "lstm", "mlp")


def torso_of(**options: object) -> Torso:
    return build_torso(TorsoConfig(**(SIZES | options)))


def others_than(kind: str) -> list[Torso]:
    """Torsos whose states and caches do not fit a torso of `kind`."""
    others = [torso_of(kind=kind, width=4), torso_of(kind=kind, num_layers=3)]
    others += [torso_of(kind=other) for other in KINDS if other != kind]
    if kind == "transformer":
        others += [torso_of(window_length=8), torso_of(long_term="slots"), torso_of(num_heads=4)]
    return others


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_caches_of_other_torsos_are_refused(kind: str) -> None:
    torso = torso_of(kind=kind)
    x, is_first = torch.zeros(3, 8), torch.zeros(3, dtype=torch.bool)
    for other in others_than(kind):
        state = other.initial_state(3)
        with pytest.raises(ValueError, match=r"state\.\w+ is .*, but this torso takes"):
            torso.prefill(state)
        with pytest.raises(ValueError, match=r"another torso's, with torso\.\w+=.* instead of"):
            torso.state_shape.check_step(x, other.prefill(state), is_first, torso.norm.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_another_shape_or_dtype_are_refused(kind: str) -> None:
    torso = torso_of(kind=kind)
    check, weight, state = torso.state_shape, torso.norm.weight, torso.initial_state(3)
    x, is_first = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    cache = torso.prefill(state)
    wide = state._replace(long_term=state.long_term.double())
    calls = {
        r"x is torch.float32 \[3, 5, 8\], .* takes torch.float32 \[4, T, 8\]": lambda: (
            check.check_sequence(x, torso.initial_state(4), is_first, weight)
        ),
        r"x is torch.float32 \[3, 8\]": lambda: check.check_sequence(
            x[:, 0], state, is_first, weight
        ),
        r"x is torch.float32 \[3, 0, 8\]": lambda: check.check_sequence(
            x[:, :0], state, is_first[:, :0], weight
        ),
        "x is torch.float64": lambda: check.check_sequence(x.double(), state, is_first, weight),
        r"is_first is torch.bool \[3\], .* takes a tensor \[3, 5\]": lambda: check.check_sequence(
            x, state, is_first[:, 0], weight
        ),
        "state.window_length is torch.float32": lambda: check.check_state(
            state.apply(torch.Tensor.float), weight
        ),
        "state.long_term is torch.float64": lambda: check.check_state(wide, weight),
        r"x is torch.float32 \[1, 8\]": lambda: check.check_step(
            x[:1, 0], cache, is_first[:1, 0], weight
        ),
        r"x is torch.float32 \[3, 5, 8\], .* takes torch.float32 \[3, 8\]": lambda: (
            check.check_step(x, cache, is_first, weight)
        ),
        r"is_first is torch.bool \[1\]": lambda: check.check_step(
            x[:, 0], cache, is_first[:1, 0], weight
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    with torch.autocast("cpu", torch.bfloat16):  # Autocast chooses dtypes itself.
        torso(x.bfloat16(), state, is_first)
        torso.decode_step(x[:, 0].bfloat16(), torso.prefill(state), is_first[:, 0])


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_another_type_are_refused(kind: str) -> None:
    torso = torso_of(kind=kind)
    state, x, is_first = torso.initial_state(3), torch.randn(3, 5, 8), torch.zeros(3, 5).bool()
    calls = {
        "state is a tuple, but must be a MemoryState": lambda: torso(x, tuple(state), is_first),
        "x is a ndarray": lambda: torso(x.numpy(), state, is_first),
        "is_first is a ndarray": lambda: torso(x, state, is_first.numpy()),
        "cache is a MemoryState; pass what prefill": lambda: torso.decode_step(
            x[:, 0], state, is_first[:, 0]
        ),
        "flat state is a ndarray": lambda: state.from_flat(state.to_flat().numpy()),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_timelines_that_do_not_match_are_refused() -> None:
    torso = torso_of()
    state, timeline = torso.initial_state(3), torch.zeros(3, 2, 4 + 5, 8)
    for wrong, message in (
        (timeline[:, :, :4], r"timeline .* is torch.float32 \[3, 2, 4, 8\], .*num_steps of 1 or"),
        (timeline.half(), "timeline is torch.float16"),
        (timeline.to("meta"), "timeline on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            torso.prefill(state, timeline=wrong)
    assert torso.prefill(state, timeline=timeline).timeline is timeline
    with torch.autocast("cpu", torch.bfloat16):
        torso.prefill(state, timeline=timeline.bfloat16())
        with pytest.raises(ValueError, match=r"timeline is torch\.int64"):
            torso.prefill(state, timeline=timeline.long())


@pytest.mark.compile
def test_flat_states_of_another_shape_or_dtype_are_refused() -> None:
    state = torso_of().initial_state(3)
    flat = state.to_flat()
    for wrong in (flat[0], flat[:, 1:], flat.bfloat16()):
        with pytest.raises(ValueError, match=r"flat state is torch\..*, but this torso's is .*\[B"):
            state.from_flat(wrong)


def test_a_torso_accepts_the_cache_of_an_equal_configuration() -> None:
    first, second = torso_of(), torso_of()
    cache = first.prefill(first.initial_state(1))
    second.decode_step(torch.zeros(1, 8), cache, torch.zeros(1, dtype=torch.bool))


def state_after_six_steps() -> MemoryState:
    """A state of 3 rows after 6 steps."""
    torso = build_torso(TorsoConfig(**SIZES))
    is_first = torch.zeros(3, 6, dtype=torch.bool)
    return torso(torch.randn(3, 6, 8), torso.initial_state(3), is_first)[1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_rows_are_reset_by_zeros_and_ones_of_any_type(dtype: torch.dtype) -> None:
    state = state_after_six_steps()
    state = state._replace(window=state.window.index_fill(0, torch.tensor([1]), torch.nan))
    after = state.reset(torch.tensor([0, 1, 0]).to(dtype))
    for before, field in zip(state, after, strict=True):
        assert torch.equal(field[::2], before[::2])
        assert not field[1].any()


def test_a_reset_needs_one_mark_per_row() -> None:
    with pytest.raises(ValueError, match=r"rows has the shape \[1\], but a state of 3 rows"):
        state_after_six_steps().reset(torch.tensor([2]))


def test_torch_loads_a_saved_state_with_weights_only(tmp_path: Path) -> None:
    state = state_after_six_steps()
    torch.save({"memory": state}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)["memory"]
    assert isinstance(loaded, MemoryState)
    for actual, field in zip(loaded, state, strict=True):
        assert torch.equal(actual, field)


def test_a_state_of_any_batch_size_reads_flat_states() -> None:
    state = state_after_six_steps()
    flat = state.to_flat()
    for like in (state, state.rows([0]), state.rows([])):
        for field, again in zip(state, like.from_flat(flat), strict=True):
            assert torch.equal(field, again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_from_autocast_can_be_used_outside_of_it(kind: str) -> None:
    torso = build_torso(TorsoConfig(kind=kind, **SIZES))
    x, is_first = torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = torso(x, torso.initial_state(2), is_first)
    y, _ = torso(x, state, is_first)
    assert y.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_acting_from_a_state_with_gradients_keeps_no_graph(kind: str) -> None:
    torso = build_torso(TorsoConfig(kind=kind, **SIZES))
    x, is_first = torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    _, state = torso(x, torso.initial_state(2), is_first)
    cache = torso.prefill(state)
    torso.decode_step(x[:, 0], cache, is_first[:, 0])
    assert not any(field.requires_grad for field in cache.state())


@pytest.mark.parametrize("long_term", ["delta", "linear", "slots", "tokens", "none"])
def test_acting_does_not_change_its_initial_state(long_term: str) -> None:
    decay = "fixed" if long_term == "linear" else "none"
    torso = build_torso(TorsoConfig(**SIZES, long_term=long_term, decay=decay))
    x = torch.randn(2, 6, 8)
    _, state = torso(x, torso.initial_state(2), torch.zeros(2, 6, dtype=torch.bool))
    cache = torso.prefill(state)
    versions = [part._version for part in state]
    torso.decode_step(x[:, 0], cache, torch.tensor([True, False]))
    # A backward pass refuses a tensor that was changed in place.
    assert [part._version for part in state] == versions


@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("decay", ["none", "fixed"])
def test_a_torso_keeps_its_constants_when_cast_and_cast_back(decay: str, position: str) -> None:
    options = {"decay": decay, "long_term": "linear" if decay == "fixed" else "delta"}
    options["position"] = position
    torso = build_torso(TorsoConfig(**SIZES, **options))
    with torch.no_grad():
        for weight in torso.parameters():  # bfloat16 represents these numbers exactly.
            weight.copy_(torch.randint_like(weight, -8, 9) / 16)
    x, is_first = torch.randn(2, 9, 8), torch.zeros(2, 9, dtype=torch.bool)
    expected, _ = torso(x, torso.initial_state(2), is_first)
    actual, _ = torso.bfloat16().float()(x, torso.initial_state(2), is_first)
    torch.testing.assert_close(actual, expected)
    empty = torso.to("meta").to_empty(device="cpu")
    for before, after in zip(build_torso(torso.config).buffers(), empty.buffers(), strict=True):
        assert torch.equal(before, after)


SYSTEMS = [
    *({"long_term": kind} for kind in ("delta", "agalite", "slots", "tokens", "none")),
    {"long_term": "linear", "decay": "free"},
    *({"kind": kind} for kind in KINDS[1:]),
]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_a_nan_ends_with_its_episode(system: dict) -> None:
    torso = build_torso(TorsoConfig(**({} if "kind" in system else SIZES), **system))
    width = torso.config.width
    x, is_first = torch.randn(2, 12, width), torch.zeros(2, 12, dtype=torch.bool)
    x[0, 3], is_first[0, 6] = torch.nan, True
    cache = torso.prefill(torso.initial_state(2))
    y = torch.stack([torso.decode_step(x[:, t], cache, is_first[:, t]) for t in range(12)], dim=1)
    assert y[1].isfinite().all()
    assert not y[0, 3].isfinite().any()
    assert y[0, 6:].isfinite().all()
    alone = torso.prefill(torso.initial_state(1))
    for t in range(6, 12):
        torch.testing.assert_close(torso.decode_step(x[:1, t], alone, is_first[:1, t])[0], y[0, t])
    assert all(field.isfinite().all() for field in cache.state())
    # Within a call a sequence can spread a NaN past a reset; a reset of the state removes it.
    _, state = torso(x[:, :6], torso.initial_state(2), is_first[:, :6])
    after, state = torso(x[:, 6:9], state.reset(is_first[:, 6]), is_first[:, 6:9])
    torch.testing.assert_close(after, y[:, 6:9])
    assert all(field.isfinite().all() for field in state)
