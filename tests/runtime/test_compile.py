"""torch.compile applied to a policy: same results, checked gradients, and clear refusals."""

import re
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
from mtxl_rl.agents.transition import Decision, PolicyInputs
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime import compile as runtime_compile
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.torso.cache import Cache
from mtxl_rl.training import run as run_module
from mtxl_rl.training.run import Run

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
    for network, is_zero in ((policy, True), (copy, False)):
        state = network.torso.initial_state(2)
        acted = network.act(inputs, network.prefill(state)).value
        learned, _ = network(inputs.unsqueeze_time(), state)
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


def test_a_step_for_a_cuda_graph_keeps_the_caches_addresses_and_copies_its_decision() -> None:
    """The parts that do not need a GPU; a gpu test asks torch whether it recorded the graph."""
    policy = small_policy()
    inputs = PolicyInputs(
        {"obs": torch.ones(2, 3)}, torch.zeros(2, 1).long(), torch.zeros(2),
        torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    returned = []

    def step(policy: Policy, inputs: PolicyInputs, cache: Cache, noise: None) -> Decision:
        returned.append(Policy.decode_step(policy, inputs, cache, noise))
        return returned[-1]

    caches = [policy.prefill(policy.torso.initial_state(2)) for _ in range(2)]
    graph = runtime_compile._step_in_place(step)
    with torch.no_grad():
        decision = graph(policy, inputs, caches[0], None)
        expected = policy.decode_step(inputs, caches[1], None)
    for name, tensor in caches[0].tensors().items():
        assert tensor._dynamo_static_input_type == "unguarded", name
    for copy, original, reference in zip(decision, returned[0], expected, strict=True):
        assert torch.equal(copy, reference)
        assert copy.data_ptr() != original.data_ptr()


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


@pytest.mark.parametrize(
    ("kind", "device", "seconds_left", "compiles", "reason"),
    [
        ("transformer", "cpu", 3600.0, True, "take 1:00:00 more; .* saves about 0:13:51"),
        ("transformer", "cpu", 400.0, True, "take 0:06:40 more"),
        ("transformer", "cpu", 380.0, False, "take 0:06:20 more; .* less than the 90 s"),
        ("transformer", "cuda", 3600.0, False, "no run on cuda was measured"),
        ("gru", "cpu", 3600.0, False, "torso.kind=gru has nothing to compile"),
    ],
)
def test_auto_compiles_where_it_saves_more_than_it_takes(
    kind: str,
    device: str,
    seconds_left: float,
    compiles: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_compile, "require_compiler", lambda _: None)
    chosen, sentence = runtime_compile.resolve_compile(
        kind, torch.device(device), seconds_left=seconds_left
    )
    assert chosen == compiles
    assert re.search(reason, sentence)


def test_auto_does_not_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiles, reason = runtime_compile.resolve_compile(
        "transformer", torch.device("cpu"), seconds_left=1e9
    )
    assert not compiles
    assert "needs the C++ compiler no-such-compiler" in reason


def test_auto_decides_after_the_first_iteration_by_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    events = list[str]()

    def resolve(kind: str, device: torch.device, *, seconds_left: float) -> tuple[bool, str]:
        assert (kind, device.type) == ("transformer", "cpu")
        # 2 of the 3 iterations are left.
        assert seconds_left == pytest.approx(2 * run.compute_seconds)
        return True, "for the test"

    monkeypatch.setattr(run_module, "resolve_compile", resolve)
    monkeypatch.setattr(run_module, "compile_policy", lambda _: events.append("compiled"))
    monkeypatch.setattr(run_module, "check_gradients", lambda *_: events.append("checked"))
    config = compose_config(OPTIONS)
    assert config.compile == "auto"
    with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        was_compiling = []
        for _ in range(3):
            run.iterate()
            was_compiling.append(run.is_compiling)
            events.append("iterated")
    assert was_compiling == [False, True, False]
    assert events == ["iterated", "compiled", "checked", "iterated", "iterated"]
    assert capsys.readouterr().out.count("compile=true: for the test") == 1


def test_auto_leaves_a_short_run_uncompiled_and_reports_why(capsys: pytest.CaptureFixture) -> None:
    config = compose_config(OPTIONS)
    with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        for _ in range(2):
            run.iterate()
    assert "decode_step" not in vars(run.policy)
    assert capsys.readouterr().out.count("compile=false: ") == 1


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [[], ["torso=slots", "torso.slots.is_shared=true", "torso.gradient_checkpointing=true"]],
    ids=str,
)
def test_a_compiled_run_learns_what_an_eager_one_learns(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Timelines wrap and episodes end; acting and learning in one rollout must agree.
    monkeypatch.setattr(runtime_compile, "COMPILE_SECONDS", 0.0)  # auto compiles, too.
    metrics = []
    for compiles in ("false", "true", "auto"):
        config = compose_config([*OPTIONS, *options, f"compile={compiles}"])
        with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
            run = Run(config, env)
            run.start(seed=None)
            metrics.append([run.iterate() for _ in range(3)])
            assert ("decode_step" in vars(run.policy)) == (compiles != "false" and not options)
            assert ("forward" in vars(run.policy.torso.layers[0])) == (compiles != "false")
    names = ("policy_loss", "value_loss", "entropy", "grad_norm")
    for compiled_metrics in metrics[1:]:
        for eager, compiled in zip(metrics[0], compiled_metrics, strict=True):
            assert compiled["losses/ratio_deviation"] < 1e-5
            for name in (f"losses/{name}" for name in names):
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
