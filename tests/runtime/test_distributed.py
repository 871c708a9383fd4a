"""A run on several processes computes what the same run computes on one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtxl_rl.runtime.distributed import choose_num_processes

WORKER = str(Path(__file__).with_name("data_parallel_worker.py"))
# Episodes of 10 steps reset inside spans of 8, so valid steps differ between processes.
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=8", "device=cpu",
    "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=16",
    "ppo.bptt_segments=2", "ppo.num_minibatches=4", "ppo.num_epochs=4", "total_steps=10000",
]  # fmt: skip
KEYS = ("loss/policy", "loss/value", "ppo/approx_kl", "ppo/epochs", "ppo/explained_variance")
Result = tuple[dict[str, Any], list[Any]]


def train(
    folder: Path, num_processes: int, *options: str, num_iterations: int = 2, resume: str = "new"
) -> Result:
    """Weights and metrics of some iterations, by torchrun if there are several processes."""
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    launcher = torchrun if num_processes > 1 else []
    arguments = [WORKER, str(folder), str(num_iterations), resume, *OPTIONS, *options]
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = torch.load(folder / "weights.pt")
    return weights, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def assert_same(one: Result, other: Result) -> None:
    for name, weight in one[0].items():
        torch.testing.assert_close(other[0][name], weight, rtol=0, atol=1e-9, msg=name)
    for expected, metrics in zip(one[1], other[1], strict=True):
        # Metrics are summed in float32; the policy loss is a small sum of terms of size 1.
        assert {key: metrics[key] for key in KEYS} == pytest.approx(
            {key: expected[key] for key in KEYS}, rel=1e-6, abs=1e-7
        )
        assert metrics.get("episode/return") == pytest.approx(expected.get("episode/return"))


def test_two_processes_continued_by_one_learn_what_one_learns(tmp_path: Path) -> None:
    weights, metrics = train(tmp_path / "one", 1, num_iterations=4)
    _, first = train(tmp_path / "two", 2)
    last_weights, last = train(tmp_path / "continued", 1, resume=str(tmp_path / "two"))
    assert_same((weights, metrics), (last_weights, first + last))


@pytest.mark.slow
def test_four_processes_stop_an_epoch_together(tmp_path: Path) -> None:
    options = ["ppo.target_kl=1e-5", "ppo.num_minibatches=2"]
    one = train(tmp_path / "one", 1, *options)
    assert one[1][-1]["ppo/epochs"] < 4
    assert_same(one, train(tmp_path / "four", 4, *options))


def test_the_train_command_starts_its_processes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "mtxl_rl.train", *OPTIONS[:-1], "total_steps=256"]
    done = subprocess.run(
        [*command, "num_processes=2", f"run_dir={run_dir}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 environments in 2 processes of 4" in done.stdout
    assert len((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert (run_dir / "policy.safetensors").exists()


def test_processes_have_enough_environments_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtxl_rl.runtime.distributed.num_cores", lambda: 4)
    cpu = torch.device("cpu")
    assert choose_num_processes([1, 2, 4, 8], num_envs=128, device=cpu)[0] == 4
    assert choose_num_processes([1, 2, 4, 8], num_envs=32, device=cpu)[0] == 2
    assert choose_num_processes([1, 2, 4], num_envs=4, device=cpu)[0] == 1
    assert choose_num_processes([1, 5], num_envs=1000, device=cpu)[0] == 1
