"""A policy's step as a file: it computes what the policy does, and refuses what it cannot."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.agents.transition import EPISODE_STEP, PolicyInputs, observation_shapes
from mtxl_rl.compose import compose_config
from mtxl_rl.config_files import load_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.export import ExportConfig, compare_with_policy, main
from mtxl_rl.runtime import exported_policy
from mtxl_rl.runtime.exported_policy import ExportedPolicy
from mtxl_rl.runtime.exported_step import (
    ExportedStep,
    NarrowLinear,
    export_policy,
    narrowed,
    prefill,
)
from mtxl_rl.torso import MemoryTransformer, TorsoConfig
from mtxl_rl.training import trainer

SIZES = {"width": 16, "num_heads": 2, "num_layers": 2, "window_length": 8, "segment_length": 4}
SPACES = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.MultiDiscrete([2, 3])
TORSOS = {
    "odometry": SIZES | {"odometry": True},
    "delta": SIZES,
    "one memory": {**SIZES, "memory_layers": [2]},
    "linear": {**SIZES, "long_term": "linear", "decay": "free", "position": "rotary"},
    "agalite": {**SIZES, "long_term": "agalite"},
    "slots": {**SIZES, "long_term": "slots"},
    "tokens": {**SIZES, "long_term": "tokens"},
    "gtrxl": {**SIZES, "long_term": "none"},
    "gru": {"kind": "gru", "width": 16},
    "lstm": {"kind": "lstm", "width": 16},
    "mlp": {"kind": "mlp", "width": 16},
}


def policy_of(torso: dict[str, object], **config: bool) -> Policy:
    """A policy of random weights, larger than at the start, so that memories tell."""
    torch.manual_seed(0)
    policy = Policy(*SPACES, torso=TorsoConfig(**torso), policy=PolicyConfig(**config)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(2)
    return policy


@pytest.mark.parametrize(
    ("name", "is_narrow"), [*((name, False) for name in TORSOS), ("delta", True), ("slots", True)]
)
@pytest.mark.training
def test_an_exported_step_equals_acting(name: str, *, is_narrow: bool) -> None:
    policy = policy_of(TORSOS[name], episode_step=name == "delta")
    if is_narrow:
        policy = narrowed(policy)
    shapes = observation_shapes(SPACES[0], episode_step=name == "delta")
    step = ExportedStep(policy, shapes, 3)
    assert (EPISODE_STEP in step.state) == (name == "delta")
    cache = prefill(policy, 3)
    action, number = torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    rings = [field for name, field in step.state.items() if name.startswith(("keys", "values"))]
    assert {ring.dtype for ring in rings} <= {torch.bfloat16 if is_narrow else torch.float32}
    # Not cloned: a file gets the same tensors at each step, which it changes in place.
    state = list(step.state.values())
    for t in range(40):  # Several windows and segments, and episodes that start inside them.
        observation, reward = torch.randn(3, 3), torch.randn(3)
        is_first = torch.rand(3) < (0.1 if t else 1.0)
        noise = policy.action_head.noise(3, torch.Generator().manual_seed(t))
        number = torch.where(is_first, 0, number)
        leaves = {"obs": observation} | ({EPISODE_STEP: number} if EPISODE_STEP in shapes else {})
        decision = policy.act(PolicyInputs(leaves, action, reward, is_first), cache, noise)
        with torch.no_grad():
            env_action, value, parameters = step([observation], reward, is_first, noise, state)
        assert torch.equal(value, decision.value)
        log_prob = policy.action_head.log_prob(parameters, decision.action)
        assert torch.equal(log_prob, decision.log_prob)
        assert np.array_equal(env_action.numpy(), policy.action_head.to_env(decision.action))
        action, number = decision.action, number + 1


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["delta", "odometry", "slots", "tokens", "gru"])
def test_an_onnx_file_acts_as_the_policy(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    policy, path = policy_of(TORSOS[name], episode_step=name == "delta"), tmp_path / "policy.onnx"
    shapes = observation_shapes(SPACES[0], episode_step=name == "delta")
    export_policy(policy, shapes, path, num_rows=3)
    agent, generator = ExportedPolicy(path, seed=1), torch.Generator().manual_seed(1)
    cache, action = prefill(policy, 3), torch.zeros(3, 2, dtype=torch.long)
    number = torch.zeros(3, dtype=torch.long)
    for t in range(200):
        observation, reward = torch.randn(3, 3), torch.randn(3)
        is_first = torch.rand(3) < (0.1 if t else 1.0)
        number = torch.where(is_first, 0, number)
        leaves = {"obs": observation} | ({EPISODE_STEP: number} if EPISODE_STEP in shapes else {})
        inputs = PolicyInputs(leaves, action, reward, is_first)
        decision = policy.act(inputs, cache, policy.action_head.noise(3, generator))
        agent.reset(is_first.numpy())
        env_action = agent.act(observation.numpy(), reward=reward.numpy())
        assert np.array_equal(env_action, policy.action_head.to_env(decision.action))
        torch.testing.assert_close(agent.value, decision.value, rtol=1e-5, atol=1e-5)
        action, number = decision.action, number + 1


def test_narrow_weights_are_rounded_and_nothing_else() -> None:
    policy = policy_of(SIZES)
    cast_copy = narrowed(policy)
    assert isinstance(cast_copy.torso, MemoryTransformer)
    narrow = [part for part in cast_copy.torso.modules() if isinstance(part, NarrowLinear)]
    assert len(narrow) == len([m for m in policy.torso.modules() if type(m) is torch.nn.Linear])
    for part in narrow:
        assert part.kept.dtype == torch.bfloat16
    wide = policy_of(SIZES)
    with torch.no_grad():
        for module in wide.torso.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(module.weight.bfloat16())
    x, first = torch.randn(2, 10, 16), torch.zeros(2, 10, dtype=torch.bool)
    features, _ = cast_copy.torso(x, cast_copy.torso.initial_state(2), first)
    expected, _ = wide.torso(x, wide.torso.initial_state(2), first)
    torch.testing.assert_close(features, expected)
    assert not torch.equal(expected, policy.torso(x, policy.torso.initial_state(2), first)[0])
    # Stepping, its window is rounded, too: off by bfloat16's rounding of keys and values.
    cache = prefill(cast_copy, 2)
    assert {ring.dtype for ring in (*cache.keys, *cache.values)} == {torch.bfloat16}
    steps = [cast_copy.torso.decode_step(x[:, t], cache, first[:, t]) for t in range(10)]
    assert (torch.stack(steps, 1) - features).abs().max() / features.abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": ""}, "checkpoint= is missing"),
        ({"weights": "int4"}, "weights=int4 is unknown; choose one of float32, bfloat16"),
        ({"output": "policy.so"}, r"must end in \.pt2 or \.onnx"),
        ({"output": "p.onnx", "weights": "bfloat16"}, r"weights=bfloat16 needs output=\*\.pt2"),
        ({"num_rows": 0}, "num_rows=0 must be 1 or more"),
    ],
)
def test_illegal_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(**({"checkpoint": "runs/x"} | options))  # type: ignore[arg-type]


def test_a_file_that_was_not_exported_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ExportedPolicy(tmp_path / "policy.pt2")
    (tmp_path / "policy.pt2").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is not a file that mtxl_rl\.export wrote"):
        ExportedPolicy(tmp_path / "policy.pt2")
    (tmp_path / "policy.bin").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"must end in \.pt2 or \.onnx"):
        ExportedPolicy(tmp_path / "policy.bin")
    with pytest.raises(SystemExit):
        main([f"checkpoint={tmp_path}"])
    assert "give the folder of a run" in capsys.readouterr().err


def test_an_observation_is_taken_unchanged_or_refused() -> None:
    agent = object.__new__(ExportedPolicy)  # without a file
    agent._leaves = ["seen", "where"]
    agent._inputs = {
        "observation/seen": torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        "observation/where": torch.zeros(1, 3),
        "is_first": torch.ones(1, dtype=torch.bool),
    }
    seen, where = np.random.default_rng(0).integers(0, 256, (4, 4, 3)), np.zeros(3)
    assert agent._show({"seen": seen, "where": where})  # of another type, and nothing is lost
    assert np.array_equal(agent._inputs["observation/seen"][0], seen)
    assert not agent._show({"seen": seen[None], "where": where[None]})
    for changed in (seen / 255, seen + 256, seen - 1.5):
        with pytest.raises(ValueError, match="not scaled"):
            agent._show({"seen": changed, "where": where})
    for mixed in ({"seen": seen, "where": where[None]}, {"seen": seen[None], "where": where}):
        with pytest.raises(ValueError, match="all leaves without the first axis"):
            agent._show(mixed)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.training
def test_a_file_that_takes_other_actions_is_refused(*, is_right: bool) -> None:
    envs = gymnasium.make_vec("CartPole-v1", num_envs=1)
    torch.manual_seed(0)
    policy = Policy(
        envs.single_observation_space,
        envs.single_action_space,
        torso=TorsoConfig(**SIZES),  # type: ignore[arg-type]
        policy=PolicyConfig(),
    ).eval()
    actor = Actor(envs, policy, generator=torch.Generator().manual_seed(0))

    class File(ExportedPolicy):
        """Has the right values; and the right actions, or the others."""

        def __init__(self) -> None:  # without a file
            self.cache = prefill(policy, 1)
            self.generator = torch.Generator().manual_seed(0)
            self.action = torch.zeros(1, 1, dtype=torch.long)
            self.is_first = torch.ones(1, dtype=torch.bool)

        def reset(self, rows: list[int]) -> None:  # type: ignore[override]
            self.is_first[rows] = True

        def act(self, leaves: dict, *, reward: torch.Tensor) -> np.ndarray:  # type: ignore[override]
            inputs = PolicyInputs(leaves, self.action, reward, self.is_first.clone())
            self.is_first[:] = False
            noise = policy.action_head.noise(1, self.generator)
            decision = policy.act(inputs, self.cache, noise)
            self.action, self.value = decision.action, decision.value
            action = decision.action[:, 0].numpy()
            return action if is_right else 1 - action

    if is_right:
        assert "differ by at most" in compare_with_policy(actor, File(), num_steps=50)
    else:
        with pytest.raises(RuntimeError, match="its actions by 1"):
            compare_with_policy(actor, File(), num_steps=50)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "weights"),
    [("policy.pt2", "float32"), ("policy.pt2", "bfloat16"), ("policy.onnx", "float32")],
)
def test_a_run_is_exported_and_its_file_acts(
    tmp_path: Path,
    name: str,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    folder, path = tmp_path / "run", tmp_path / "files" / name
    options = ["env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "total_steps=512",
               "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=16",
               "ppo.bptt_segments=4", "policy.episode_step=true"]  # fmt: skip
    trainer.run_until_signal(compose_config([*options, "device=cpu", f"run_dir={folder}"]))
    main([f"checkpoint={folder}", f"output={path}", f"weights={weights}", "check_steps=30"])
    assert "a step of 1 row(s) takes" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == [name]
    agent, row_agent = ExportedPolicy(path, seed=3), ExportedPolicy(path, seed=3)
    observation = episodes_of(agent, row_agent, folder)
    assert_resets_forget(agent, row_agent, observation)
    assert_wrong_inputs_are_refused(agent, observation)
    monkeypatch.setattr(exported_policy, "made_for", lambda: "torch 1")
    if name.endswith(".onnx"):  # Its graph depends on neither torch nor the processor.
        ExportedPolicy(path)
        return
    with pytest.raises(ValueError, match=r"made for torch .*this is torch 1"):
        ExportedPolicy(path)


def episodes_of(agent: ExportedPolicy, row_agent: ExportedPolicy, folder: Path) -> np.ndarray:
    """30 steps of both with the same seed, one of them without the first axis."""
    with closing(make_vector_env(load_config(folder).env, num_envs=1, seed=5)) as env:
        observation, _ = env.reset()
        reward, is_end = np.zeros(1), np.zeros(1, bool)
        for _ in range(30):
            action = agent.act(observation, reward=reward)
            same = row_agent.act(observation[0, ::-1].copy()[::-1], reward=reward[0])
            assert action.shape == (1,)
            assert same.shape == ()
            assert action[0] == same
            assert agent.value == row_agent.value
            if is_end[0]:
                agent.reset()
                row_agent.reset([0])
            observation, reward, terminated, truncated, _ = env.step(action)
            is_end = terminated | truncated
    return observation


def assert_resets_forget(
    agent: ExportedPolicy, row_agent: ExportedPolicy, observation: np.ndarray
) -> None:
    """A reset by mask or index forgets, also a NaN; an empty mask does not."""

    def step(policy: ExportedPolicy, leaf: np.ndarray = observation) -> tuple[int, float]:
        return int(policy.act(leaf)[0]), float(policy.value)

    agent.reset(np.array([True]))
    row_agent.reset([0])
    assert step(agent) == step(row_agent)
    agent.reset(np.array([False]))
    assert step(agent) == step(row_agent)
    assert np.isnan(step(agent, np.full_like(observation, np.nan))[1])
    step(row_agent)
    agent.reset(np.array([True]))
    row_agent.reset()
    assert step(agent) == step(row_agent)


def assert_wrong_inputs_are_refused(agent: ExportedPolicy, observation: np.ndarray) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("no 'obs'", lambda: agent.act({"seen": observation})),
        ("num_rows=", lambda: agent.act(observation[:, :1])),
        ("give a mask", lambda: agent.reset(np.array([True, False]))),
        ("steps rows 0 .. 0", lambda: agent.reset([1])),
    ]
    for message, call in calls:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
