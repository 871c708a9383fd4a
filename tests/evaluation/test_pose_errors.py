"""The errors of an odometry's pose, against the ways back to the start that the maze reports."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mtxl_rl import evaluate
from mtxl_rl.agent import Agent
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.evaluation.pose_errors import PoseErrors
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.training.trainer import run_until_signal

OPTIONS = [
    "env=GridMemoryMaze", "env.extra_observations=true", "env.episode_length=30",
    "policy.observations=[view]", "torso.odometry=true", "auxiliary.movement=[last_vec,last_dir]",
    "auxiliary.predict=[targets_vec,first_vec,first_dir]", "num_envs=4", "ppo.rollout_length=8",
    "device=cpu", "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2",
    "torso.width=16", "torso.num_heads=2", "ppo.num_epochs=1", "ppo.num_minibatches=2",
    "total_steps=640", "stagger_steps=0", "compile=false", "num_processes=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pose") / "run"
    run_until_signal(compose_config([*OPTIONS, f"run_dir={folder}"]))
    return folder


@pytest.mark.training
def test_errors_are_those_of_the_ways_back_to_the_start(folder: Path) -> None:
    agent = Agent(read_agent(folder), device="cpu")
    with closing(make_vector_env(agent.config.env, num_envs=4, seed=0)) as env:
        actor = agent.actor(env, is_training=True)
        actor.reset(seed=0)
        actor.prefill(agent.policy.torso.initial_state(4))
        assert actor.cache is not None
        assert agent.policy.movement_decoder is not None
        errors = PoseErrors(agent.policy.movement_decoder)
        headings, places = [], []
        for _ in range(100):
            errors.observe(actor)
            observation = actor.inputs().observation
            first_vec, first_dir = (
                observation[name].double() for name in ("first_vec", "first_dir")
            )
            steps = actor.episode_step.copy()
            actor.step()
            x, y, heading = actor.cache.odometry[:, -3:].double().unbind(-1)
            turn = (heading - first_dir[:, 0].atan2(first_dir[:, 1])).numpy()
            headings.append(np.where(steps <= 16, (turn + np.pi) % (2 * np.pi) - np.pi, np.nan))
            sin, cos = heading.sin(), heading.cos()
            right = -x * cos - y * sin - first_vec[:, 0]
            ahead = x * sin - y * cos - first_vec[:, 1]
            places.append(np.where(steps <= 16, (right**2 + ahead**2).numpy(), np.nan))
        errors.observe(actor)
    early, late = errors.results()
    assert (early.steps, late.steps) == ("1-16", "17-64")
    assert early.num_compared + late.num_compared == 400
    assert early.heading == pytest.approx(np.sqrt(np.nanmean(np.square(headings))), rel=1e-6)
    assert early.place == pytest.approx(np.sqrt(np.nanmean(places)), rel=1e-6)
    assert early.place > 0.01


@pytest.mark.training
def test_a_probe_prints_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    command = [f"checkpoint={folder}", "episodes=2", "num_envs=2", "memory=on"]
    evaluate.main([*command, f"probe={tmp_path / 'a.png'}"])
    shown = capsys.readouterr().out
    assert "odometry's pose" in shown
    assert "17-64" in shown
