"""torch.compile applied to a policy: same results, checked gradients, and clear refusals."""

from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from types import MethodType
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.config import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.run import Run
from mtxl_rl.runtime import compile as runtime_compile
from mtxl_rl.torso import TorsoConfig

SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "window_length": 4, "segment_length": 4}
SPACES = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "device=cpu",
    "torso.num_layers=2", "torso.window_length=4", "torso.segment_length=4",
    "ppo.rollout_length=16", "ppo.bptt_segments=4", "total_steps=192", "ppo.num_minibatches=2",
]  # fmt: skip


def small_policy(torso: TorsoConfig | None = None) -> Policy:
    return Policy(*SPACES, torso=torso or TorsoConfig(**SIZES), policy=PolicyConfig())


@pytest.fixture
def backend_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without a compiler, the cheapest of its backends."""
    compile_it = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, *, options, **rest: compile_it(function, backend="eager", **rest),  # noqa: ARG005
    )


def test_a_copy_of_a_compiled_policy_uses_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    policy = small_policy()
    runtime_compile.compile_policy(policy)
    copy = deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.torso.parameters():
            parameter.zero_()
    none_first = torch.zeros(2, dtype=torch.bool)
    inputs = PolicyInputs(
        {"obs": torch.ones(2, 3)}, torch.zeros(2, 1).long(), torch.zeros(2), none_first
    )
    for one, is_zero in ((policy, True), (copy, False)):
        state = one.torso.initial_state(2)
        acted = one.act(inputs, one.prefill(state)).value
        learned, _ = one(inputs.unsqueeze_time(), state)
        torch.testing.assert_close(acted, learned.value[:, 0])
        assert (float(acted.detach().abs().max()) == 0) == is_zero


def test_inside_eager_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    policy = small_policy()
    runtime_compile.compile_policy(policy)
    layer = policy.torso.layers[0]
    assert "forward" in vars(layer)
    with runtime_compile.eager(policy):
        assert "forward" not in vars(layer)
        assert "decode_step" not in vars(policy)
    assert "forward" in vars(layer)
    assert "decode_step" in vars(policy)


@pytest.mark.usefixtures("backend_eager")
def test_more_shapes_than_are_compiled_run_eagerly_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def double(x: Tensor) -> tuple[Tensor, bool]:
        return 2 * x, torch.compiler.is_compiling()

    monkeypatch.setattr(runtime_compile, "MAX_GRAPHS", 2)
    call = runtime_compile._Compiled(double, torch.device("cpu"))
    sizes = (1, 2, 3, 1, 4)
    with pytest.warns(UserWarning, match=r"more than 2 sets of shapes .* fewer") as warned:
        results = [call(torch.ones(size)) for size in sizes]
    assert len(warned) == 1
    assert [is_compiled for _, is_compiled in results] == [True, True, False, True, False]
    for size, (doubled, _) in zip(sizes, results, strict=True):
        assert torch.equal(doubled, torch.full((size,), 2.0))


@pytest.mark.parametrize("kind", ["gru", "mlp"])
def test_a_baseline_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"no effect with torso\.kind=.*; leave it out"):
        runtime_compile.compile_policy(small_policy(TorsoConfig(kind=kind, width=8)))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler no-such-compiler"):
        runtime_compile.compile_policy(small_policy())


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [[], ["torso=slots", "torso.slots.is_shared=true", "torso.gradient_checkpointing=true"]],
    ids=str,
)
def test_a_compiled_run_learns_what_an_eager_one_learns(options: list[str]) -> None:
    # Timelines wrap and episodes end; acting and learning in one rollout must agree.
    metrics = []
    for compiles in ("false", "true"):
        config = compose_config([*OPTIONS, *options, f"compile={compiles}"])
        with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
            run = Run(config, env)
            run.start(seed=None)
            metrics.append([run.iterate() for _ in range(3)])
    for eager, compiled in zip(*metrics, strict=True):
        assert compiled["losses/ratio_deviation"] < 1e-5
        for name in (
            "losses/policy_loss",
            "losses/value_loss",
            "losses/entropy",
            "losses/grad_norm",
        ):
            assert compiled[name] == pytest.approx(eager[name], rel=1e-3, abs=1e-5), name


@pytest.fixture
def run() -> Iterator[Run]:
    config = compose_config(OPTIONS)
    with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        run.collector.collect()
        yield run


@pytest.mark.parametrize("factor", [1.0, 1.1, float("nan")])
def test_layers_with_wrong_gradients_are_refused(run: Run, factor: float) -> None:
    layers: Any = run.policy.torso.layers

    def scaled_gradient(layer: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: Any, *inputs: Any) -> Any:  # noqa: ANN401, ARG001
            y, after = layer(*inputs)
            return y + (factor - 1) * (y - y.detach()), after

        return forward

    for layer in layers:
        layer.forward = MethodType(scaled_gradient(layer.forward), layer)
    if factor == 1.0:
        runtime_compile.check_gradients(run.agent, run.collector.rollout)
        return
    with pytest.raises(RuntimeError, match=r"of the compiled layers differs .* set compile=false"):
        runtime_compile.check_gradients(run.agent, run.collector.rollout)
