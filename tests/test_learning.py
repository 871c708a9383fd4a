"""Agents learn what they must, by the memory that is claimed. Minutes each: `make test-slow`."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtxl_rl import evaluate, train

pytestmark = pytest.mark.slow


def trained(folder: Path, *options: str) -> Path:
    """A run, from the command line's options to its end."""
    train.main([*options, "device=cpu", "compile=false", f"run_dir={folder}"])
    return folder


def best(folder: Path, metric: str) -> tuple[float, int]:
    """The best mean over the last 100 episodes, and the step at which it was reached."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max((row.get(metric, -np.inf), -row["step"]) for row in rows)


def success(folder: Path, *options: str, episodes: int, memory: str = "on") -> dict[str, float]:
    """The success rate under each setting of the long-term memory."""
    output = folder / "evaluation.json"
    sizes = [f"episodes={episodes}", f"num_envs={episodes}", f"memory={memory}"]
    evaluate.main([f"checkpoint={folder}", *sizes, f"output={output}", *options])
    results = json.loads(output.read_text())["episodes"]
    return {
        name: float(np.mean([episode["success"] for episode in episodes]))
        for name, episodes in results.items()
    }


def test_the_long_term_memory_solves_a_corridor_beyond_the_receptive_field(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "env=TMaze")
    assert best(folder, "charts/success")[0] >= 0.98
    rates = success(folder, episodes=400, memory="on,zero,noise")
    assert rates["on"] >= 0.97
    assert abs(rates["zero"] - 0.5) < 0.1  # 4 standard errors
    assert abs(rates["noise"] - 0.5) < 0.1
    assert success(folder, "env.corridor_length=2000", episodes=100)["on"] >= 0.98


def test_without_long_term_memory_the_same_stack_stays_at_chance(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "env=TMaze", "torso=gtrxl", "total_steps=200000")
    assert abs(success(folder, episodes=400)["on"] - 0.5) < 0.1


def test_without_long_term_memory_a_corridor_inside_the_window_is_solved(tmp_path: Path) -> None:
    folder = trained(
        tmp_path / "run", "env=TMaze", "torso=gtrxl", "env.corridor_length=12", "total_steps=200000"
    )
    assert success(folder, episodes=200)["on"] >= 0.97


def test_a_task_without_memory_is_solved_too(tmp_path: Path) -> None:
    folder = trained(
        tmp_path / "run", "env=Gymnasium", "env.id=CartPole-v1", "model=tiny", "num_envs=16",
        "torso.window_length=16", "torso.segment_length=16", "ppo.learning_rate=1e-3",
        "total_steps=120000",
    )  # fmt: skip
    assert best(folder, "charts/episodic_return")[0] >= 400
