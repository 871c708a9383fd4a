"""A run on several processes computes what the same run computes on one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtxl_rl.runtime.distributed import launch

WORKER = str(Path(__file__).with_name("data_parallel_worker.py"))
# Episodes of 10 steps reset inside spans of 8, so valid steps differ between processes.
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=8", "device=cpu",
    "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=16",
    "ppo.bptt_segments=2", "ppo.num_minibatches=4", "ppo.num_epochs=4", "total_steps=10000",
]  # fmt: skip
KEYS = ("loss/policy", "loss/value", "ppo/approx_kl", "ppo/epochs", "ppo/explained_variance")


def train(folder: Path, num_processes: int, *options: str) -> tuple[dict[str, Any], list[Any]]:
    """Weights and metrics of two iterations."""
    folder.mkdir()
    arguments = [WORKER, str(folder), *OPTIONS, *options]
    assert launch(arguments, num_processes=num_processes) == 0
    weights = torch.load(folder / "weights.pt")
    return weights, json.loads((folder / "metrics.json").read_text())


def assert_same(one: tuple[dict[str, Any], list[Any]], other: tuple[dict[str, Any], Any]) -> None:
    for name, weight in one[0].items():
        torch.testing.assert_close(other[0][name], weight, rtol=0, atol=1e-9, msg=name)
    for expected, metrics in zip(one[1], other[1], strict=True):
        # Metrics are summed in float32; the policy loss is a small sum of terms of size 1.
        assert {key: metrics[key] for key in KEYS} == pytest.approx(
            {key: expected[key] for key in KEYS}, rel=1e-6, abs=1e-7
        )
        assert metrics.get("episode/return") == pytest.approx(expected.get("episode/return"))


@pytest.mark.parametrize("options", [[], ["ppo.target_kl=1e-5"]], ids=["", "stopped by the KL"])
def test_weights_and_metrics_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, options: list[str]
) -> None:
    one = train(tmp_path / "one", 1, *options)
    assert (one[1][-1]["ppo/epochs"] < 4) == bool(options)
    assert_same(one, train(tmp_path / "two", 2, *options))


def test_a_checkpoint_continues_on_another_number_of_processes(tmp_path: Path) -> None:
    train(tmp_path / "first", 2)
    resume = f"resume={tmp_path / 'first'}"
    assert_same(train(tmp_path / "on_two", 2, resume), train(tmp_path / "on_one", 1, resume))
