"""Leaves of the observation that only training receives."""

from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import mtxl_rl
from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.agents.privileged import AuxiliaryConfig, CriticConfig, observation_groups
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime.exported_policy import ExportedPolicy
from mtxl_rl.runtime.exported_step import export_policy
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.training.run import Run

SPACE = spaces.Dict({
    "seen": spaces.Box(-1, 1, (3,), np.float32),
    "hidden": spaces.Box(-1, 1, (2,), np.float32),
    "unused": spaces.Discrete(4),
})  # fmt: skip
SMALL = {
    "model": "tiny", "torso.window_length": 4, "torso.segment_length": 4, "ppo.bptt_segments": 2,
    "ppo.rollout_length": 24, "ppo.num_minibatches": 2, "num_envs": 32, "device": "cpu",
    "logger": ["none"], "policy.observations": ["cue"], "checkpoint_seconds": 600.0,
    "ppo.learning_rate": 4e-3, "torso.width": 32, "torso.num_layers": 1,
}  # fmt: skip


class RecallSide(gymnasium.Env):
    """Shows a side at the first step; the action of the last one of six steps must repeat it."""

    observation_space = spaces.Dict({
        "cue": spaces.Discrete(3), "side": spaces.Box(-1, 1, (1,), np.float32),
        "blank": spaces.Discrete(1),
    })  # fmt: skip
    action_space = spaces.Discrete(2)

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict, dict]:
        super().reset(seed=seed, options=options)
        self.side, self.time = int(self.np_random.integers(2)), 0
        return self._observation(1 + self.side), self._info()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:  # noqa: D102
        self.time += 1
        ends = self.time == 6
        reward = float(ends and action == self.side)
        return self._observation(0), reward, ends, False, self._info()

    def _observation(self, cue: int) -> dict:
        return {"cue": cue, "side": np.array([2 * self.side - 1], np.float32), "blank": 0}

    def _info(self) -> dict:
        return {"teacher_logits": 4.0 * np.eye(2, dtype=np.float32)[self.side]}


def policy(**options: list[str]) -> Policy:
    torch.manual_seed(0)
    return Policy(
        SPACE,
        spaces.Discrete(3),
        torso=TorsoConfig(width=16, num_heads=2, num_layers=1, window_length=4, segment_length=4),
        policy=PolicyConfig(observations=["seen"]),
        critic=CriticConfig(observations=options.get("critic", ["hidden"])),
        auxiliary=AuxiliaryConfig(
            predict=options.get("predict", ["hidden"]), movement=options.get("movement", [])
        ),
    )


def inputs(batch: int, steps: int) -> PolicyInputs:
    torch.manual_seed(1)
    return PolicyInputs(
        {"seen": torch.randn(batch, steps, 3), "hidden": torch.randn(batch, steps, 2)},
        torch.zeros(batch, steps, 1, dtype=torch.long),
        torch.zeros(batch, steps),
        torch.zeros(batch, steps, dtype=torch.bool),
    )


def test_only_the_value_and_the_prediction_loss_depend_on_privileged_leaves() -> None:
    agent, steps = policy(), inputs(2, 8)
    steps.observation["hidden"].requires_grad_()
    outputs, _ = agent(steps, agent.torso.initial_state(2))
    hidden = steps.observation["hidden"]

    def gradient(output: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad(
            output.sum(), hidden, retain_graph=True, materialize_grads=True
        )
        return grad

    assert not gradient(outputs.action_parameters.exp()).any()
    assert gradient(outputs.value).any()
    assert outputs.prediction_losses.keys() == {"hidden"}
    assert outputs.prediction_losses["hidden"].shape == (2, 8)


def test_acting_needs_no_privileged_leaf_and_has_no_value_without_it() -> None:
    agent, steps = policy(), inputs(2, 8)
    with torch.no_grad():
        outputs, _ = agent(steps, agent.torso.initial_state(2))
        bare = steps._replace(observation={"seen": steps.observation["seen"]})
        acting, _ = agent(bare, agent.torso.initial_state(2))
    assert list(agent.observation_space) == ["seen"]
    assert set(agent.training_space) == {"seen", "hidden"}
    torch.testing.assert_close(acting.action_parameters, outputs.action_parameters)
    assert acting.value.isnan().all()
    assert outputs.value.isfinite().all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"policy": ["sene"]}, r"policy.observations=\[sene\].* no sene; it has .*seen"),
        ({"critic": ["maze"]}, r"critic.observations=\[maze\].* no maze"),
        ({"predicted": ["x", "seen"]}, r"auxiliary.predict=\[x,seen\].* no x; it has"),
        ({"critic": ["hidden"]}, r"critic.observations=\[hidden\] has no effect"),
        ({"policy": ["seen"], "critic": ["seen"]}, "has no effect"),
    ],
)
def test_wrong_names_are_refused_with_the_legal_ones(groups: dict, message: str) -> None:
    names = {"policy": [], "critic": [], "predicted": []} | groups
    with pytest.raises(ValueError, match=message):
        observation_groups(SPACE, **names)


def test_movements_are_trained_by_two_leaves_of_two_numbers() -> None:
    hidden = ["hidden", "hidden"]
    groups = observation_groups(SPACE, policy=["seen"], critic=[], predicted=[], movement=hidden)
    assert set(groups.training) == {"seen", "hidden"}
    with pytest.raises(ValueError, match=r"movement=\[hidden,seen\]: seen is .* two numbers"):
        observation_groups(SPACE, policy=[], critic=[], predicted=[], movement=["hidden", "seen"])
    with pytest.raises(ValueError, match="must name two leaves"):
        AuxiliaryConfig(movement=["hidden"])
    with pytest.raises(ValueError, match=r"repeats hidden of auxiliary\.movement"):
        AuxiliaryConfig(movement=["hidden", "way"], predict=["hidden"])
    for options in (["torso.odometry=true"], ["auxiliary.movement=[obs,obs]"]):
        with pytest.raises(ValueError, match=r"need each other; set torso\.odometry=true and name"):
            compose_config(["env=TMaze", *options])


def test_a_leaf_that_the_policy_receives_too_is_encoded_once() -> None:
    groups = observation_groups(
        SPACE, policy=["seen"], critic=["seen", "hidden"], predicted=["seen"]
    )
    assert groups.critic is not None
    assert list(groups.critic) == ["hidden"]
    assert set(groups.training) == {"seen", "hidden"}


def test_a_space_without_names_can_be_predicted() -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    groups = observation_groups(space, policy=[], critic=[], predicted=["obs"])
    assert groups.policy == groups.training == groups.predicted == space


def train(
    folder: Path, env: type[gymnasium.Env] = RecallSide, **options: object
) -> list[dict[str, float]]:
    """Train; return the metrics of each iteration."""
    metrics: list[dict[str, float]] = []

    class Collect(mtxl_rl.Callback):
        def on_iteration(self, row: dict, **_: object) -> None:
            metrics.append(dict(row))

    named = {key.replace("__", "."): option for key, option in options.items()}
    mtxl_rl.train(env, SMALL | named, run_dir=str(folder), callbacks=Collect(), verbose=False)
    return metrics


class Luck(RecallSide):
    """Pays for one of the sides, whatever the action."""

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:  # noqa: D102
        observation, _, ends, truncated, info = super().step(action)
        return observation, float(ends and self.side), ends, truncated, info


@pytest.mark.training
def test_a_privileged_critic_predicts_what_the_policy_cannot_see(tmp_path: Path) -> None:
    options = {"policy__observations": ["blank"], "total_steps": 6144}
    with_side = train(tmp_path / "with", Luck, critic__observations=["side"], **options)
    without = train(tmp_path / "without", Luck, **options)
    explained = [rows[-1]["losses/explained_variance"] for rows in (with_side, without)]
    assert explained[0] > explained[1] + 0.2


@pytest.mark.training
def test_predictions_train_the_memory(tmp_path: Path) -> None:
    """The cue is shown at the first step only, and its side is predicted at all six."""
    metrics = train(
        tmp_path / "run", auxiliary__predict=["side"], auxiliary__coef=1, total_steps=10_752
    )  # fmt: skip
    assert metrics[0]["auxiliary/r2_side"] < 0.3
    assert np.mean([row["auxiliary/r2_side"] for row in metrics[-3:]]) > 0.7


@pytest.mark.training
def test_an_agent_trained_with_privileged_leaves_is_used_without_them(tmp_path: Path) -> None:
    train(
        tmp_path / "run", critic__observations=["side"], auxiliary__predict=["side"],
        total_steps=128,
    )  # fmt: skip
    agent = mtxl_rl.Agent.load(tmp_path / "run")
    assert list(agent.observation_space) == ["cue"]
    action, _ = agent.act({"cue": 1})
    assert action in (0, 1)
    cues = gymnasium.wrappers.FilterObservation(RecallSide(), ["cue"])
    assert len(agent.evaluate(cues, episodes=2)) == 2
    assert len(agent.evaluate(RecallSide, episodes=2)) == 2


@pytest.mark.compile  # torch.onnx
def test_the_exported_file_has_no_privileged_part(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    agent = policy()
    shapes = {"seen": ((3,), torch.float32)}
    path = tmp_path / "policy.onnx"
    export_policy(agent, shapes, path)
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert names
    assert not [name for name in names if "critic" in name or "decoder" in name]
    assert next(name for name, *_ in ExportedPolicy(path).about["inputs"]) == "observation/seen"


@pytest.mark.training
def test_the_maze_trains_with_every_privileged_signal() -> None:
    config = compose_config([
        "env=MemoryMaze", "model=tiny", "torso.window_length=4", "torso.segment_length=4",
        "ppo.bptt_segments=2", "ppo.rollout_length=16", "num_envs=4", "device=cpu",
        "env.extra_observations=true", "policy.observations=[image]",
        "env.seen_observations=true", "torso.odometry=true",
        "auxiliary.movement=[last_vec,last_dir]",
        "critic.observations=[targets_vec,agent_dir]", "auxiliary.predict=[targets_vec]",
        "teacher.policy=explorer", "env.progress_reward=0.1", "stagger_steps=0",
        "compile=false",
    ])  # fmt: skip
    assert config.env.teacher == "explorer"
    with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        metrics = run.iterate()
    assert set(run.collector.rollout.observation) == {
        "image", "targets_vec", "agent_dir", "last_vec", "last_dir"
    }  # fmt: skip
    assert metrics["losses/ratio_deviation"] < 1e-4
    assert {
        "auxiliary/r2_targets_vec", "auxiliary/r2_last_vec", "auxiliary/r2_last_dir",
        "teacher/agreement", "losses/imitation",
    } <= metrics.keys()  # fmt: skip
