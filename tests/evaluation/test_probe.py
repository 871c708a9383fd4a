"""The probe: what the predictions explain, by the steps since a target was last in view."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtxl_rl import evaluate
from mtxl_rl.agent import Agent
from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.tasks.tmaze import TMazeConfig
from mtxl_rl.evaluation import ablations
from mtxl_rl.evaluation.probe import AGES, Explained, Probe
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.torso import Cache
from mtxl_rl.training.trainer import run_until_signal as run

TINY = [
    "env=GridMemoryMaze", "env.extra_observations=true", "policy.observations=[view]",
    "auxiliary.predict=[targets_vec]", "num_envs=4", "ppo.rollout_length=8", "device=cpu",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2", "torso.width=16",
    "torso.num_heads=2", "ppo.num_epochs=1", "ppo.num_minibatches=2", "total_steps=32",
    "stagger_steps=0", "compile=false", "num_processes=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "run"
    run(compose_config([*TINY, f"run_dir={folder}"]))
    return folder


def probed(folder: Path, prediction: str) -> list[Explained]:
    """Results of 80 steps where the predictions are replaced: by the truth, or by zeros."""
    agent = Agent(read_agent(folder), device="cpu")
    env = make_vector_env(agent.config.env, num_envs=4, seed=0)
    actor = agent.actor(env, is_training=True)
    actor.reset(seed=0)

    def predict(inputs: PolicyInputs, _: Cache) -> dict[str, Tensor]:
        truth = inputs.observation["targets_vec"]
        ages = torch.as_tensor(actor.env.unwrapped.target_ages())  # type: ignore[attr-defined]
        is_right = {"truth": ages >= -1, "zeros": ages < -1, "truth in view": ages == 0}
        return {"targets_vec": (truth * is_right[prediction][..., None]).flatten(1)}

    agent.policy.predict = predict  # type: ignore[method-assign]
    probe = Probe(agent.policy, memory="on")
    for _ in range(80):
        probe.observe(actor)
        actor.step()
    assert [row.age for row in probe.results()] == list(AGES)
    assert sum(row.num_compared for row in probe.results()) == 80 * 4 * 6
    return [row for row in probe.results() if row.num_compared > 10]


@pytest.mark.training
def test_the_truth_explains_all_and_a_constant_nothing(folder: Path) -> None:
    for prediction in ("truth", "zeros", "truth in view"):
        results = probed(folder, prediction)
        assert {row.age for row in results} >= {"in view", "1-8", "9-16", "never seen"}
        for row in results:
            is_right = prediction == "truth" or (prediction == "truth in view") == (
                row.age == "in view"
            )
            if prediction != "zeros" and is_right:
                assert row.r2 == pytest.approx(1)
            else:
                assert row.r2 <= 0


@pytest.mark.training
def test_an_evaluation_is_the_same_with_a_probe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    command = [f"checkpoint={folder}", "episodes=2", "num_envs=2", "memory=on,zero"]
    evaluate.main(command)
    evaluate.main([*command, f"probe={tmp_path / 'a.png'}"])
    shown = capsys.readouterr().out
    tables = [line for line in shown.splitlines() if line.startswith("│ on ")]
    assert tables[0] == tables[-1]
    assert "never seen" in shown
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(ablations, "draw_probe", fail)
    evaluate.main([*command, f"probe={tmp_path / 'b.png'}", f"output={tmp_path / 'b.json'}"])
    assert "b.png was not drawn: RuntimeError: no font" in capsys.readouterr().out
    assert (tmp_path / "b.json").is_file()


def test_an_agent_without_predictions_and_a_task_without_targets_are_refused(folder: Path) -> None:
    agent = Agent(read_agent(folder), device="cpu")
    decoder, agent.policy.decoder = agent.policy.decoder, None
    with pytest.raises(ValueError, match="trained to predict numbers"):
        Probe(agent.policy, memory="on")
    agent.policy.decoder = decoder
    maze = make_vector_env(agent.config.env, num_envs=1, seed=0)
    actor = agent.actor(maze, is_training=True)
    actor.reset(seed=0)
    agent.policy.predict = lambda *_: {"view": torch.zeros(1, 103)}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"a row for each of 3 targets.*predicts view"):
        Probe(agent.policy, memory="on").observe(actor)
    env = make_vector_env(TMazeConfig(), num_envs=1, seed=0)
    with pytest.raises(ValueError, match=r"needs an environment with target_ages\(\)"):
        Probe(agent.policy, memory="on").observe(Actor(env, agent.policy, generator=None))


def test_what_does_not_vary_has_no_explained_share(folder: Path) -> None:
    probe = Probe(read_agent(folder).build_policy(torch.device("cpu")), memory="on")
    ages = np.zeros((8, 1), np.int64)
    constant, varied = np.full((8, 2), 3.1), np.arange(16.0).reshape(8, 2)
    probe._add("constant", constant, varied, ages)
    probe._add("varied", varied, varied, ages)
    r2 = {row.leaf: row.r2 for row in probe.results() if row.age == "in view"}
    assert math.isnan(r2["constant"])
    assert r2["varied"] == 1
