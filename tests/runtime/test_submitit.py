"""Hydra's submitit launcher trains a run in each of its jobs, by the command of docs/scaling.md."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtxl_rl.config_files import load_config
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.tracking.run_record import read_record

pytest.importorskip(
    "hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed"
)
pytestmark = pytest.mark.slow

OPTIONS = [
    "env.corridor_length=9", "model=tiny", "num_envs=4", "device=cpu", "torso.width=16",
    "torso.num_heads=2", "torso.window_length=4", "torso.segment_length=4",
    "ppo.rollout_length=16", "ppo.bptt_segments=2", "ppo.num_minibatches=2", "ppo.num_epochs=1",
    "compile=false", "total_steps=128",
]  # fmt: skip


def test_the_local_executor_trains_two_seeds(tmp_path: Path) -> None:
    documented = ["hydra/launcher=submitit_local", "env=TMaze", "seed=0,1", "num_processes=1"]
    command = [sys.executable, "-m", "mtxl_rl.train", "-m", *documented, "run_dir=runs/${seed}"]
    done = subprocess.run(
        [*command, *OPTIONS],
        cwd=tmp_path,
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for seed in range(2):
        run_dir = tmp_path / "runs" / str(seed)
        assert load_config(run_dir).seed == seed
        assert read_rows(run_dir)[-1]["step"] == 128
        assert [start["outcome"] for start in read_record(run_dir)] == ["finished"]
    assert list((tmp_path / "runs" / ".submitit").glob("*/*_result.pkl"))
