"""A run in workers of Ray Train continues after losses, and ends at errors and signals."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from mtxl_rl.compose import compose_config
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.training.callbacks import Callback, Metrics, StopTraining
from mtxl_rl.training.trainer import run_until_signal as run

pytest.importorskip("ray.train", reason="ray[train] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.ray]

DRIVER = str(Path(__file__).with_name("ray_driver.py"))
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "device=cpu",
    "torso.width=16", "torso.num_heads=2", "torso.window_length=4", "torso.segment_length=4",
    "ppo.rollout_length=16", "ppo.bptt_segments=2", "ppo.num_minibatches=2", "ppo.num_epochs=2",
    "compile=false",
]  # fmt: skip
NUM_KILLS = int(os.environ.get("MTXL_RL_RAY_KILLS", "3"))
WaitForWorkers = Callable[[Path], None]
TOTAL_STEPS = 64 * 4 * (NUM_KILLS + 1)
"""An iteration has 64 steps, and at most 3 iterations are saved before a kill."""
TO_THE_END = ["num_processes=2", f"total_steps={TOTAL_STEPS}", "checkpoint_seconds=0"]


class StopAfterHalf(Callback):
    """Stops a run after half of its steps."""

    def on_iteration(self, metrics: Metrics) -> None:
        """See `Callback`."""
        if metrics["step"] >= TOTAL_STEPS // 2:
            raise StopTraining("half is enough")


def start(
    faults: str, cluster: str, run_dir: Path, *options: str, task: Sequence[str] = OPTIONS
) -> "subprocess.Popen[str]":
    """Start the command, with a process group of its own, as a terminal does."""
    arguments = [faults, cluster, *task, f"run_dir={run_dir}", *options]
    return subprocess.Popen(
        [sys.executable, DRIVER, *arguments],
        env=os.environ | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def output(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors."""
    out, errors = process.communicate()
    return process.returncode, out, errors


def sizes(run_dir: Path) -> list[int]:
    """The number of workers at each start."""
    paths = sorted(run_dir.with_suffix(".sizes").iterdir(), key=lambda path: int(path.name))
    return [int(path.read_text(encoding="utf-8")) for path in paths]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def wait_for_workers(wait_until: Callable[[Callable[[], bool]], None]) -> WaitForWorkers:
    """A function that waits for a run's workers: Ray ends them after the command has ended."""

    def wait(run_dir: Path) -> None:
        pids = [int(path.name) for path in run_dir.with_suffix(".pids").iterdir()]
        wait_until(lambda: not any(map(is_running, pids)))

    return wait


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(run_dir)["agent"]["policy"])


def assert_same_run(run_dir: Path, reference: Path) -> None:
    torch.testing.assert_close(weights(run_dir), weights(reference), rtol=0, atol=1e-9)
    steps = [[row["step"] for row in read_rows(folder)] for folder in (run_dir, reference)]
    assert steps[0] == steps[1]


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def reference(tmp_path: Path, _float64: None) -> Path:
    """A run in this process, which nothing stops."""
    options = [*OPTIONS, f"total_steps={TOTAL_STEPS}", f"run_dir={tmp_path / 'reference'}"]
    return run(compose_config(options))[0]


def test_a_run_continues_after_each_kill(
    tmp_path: Path, reference: Path, capfd: pytest.CaptureFixture, wait_for_workers: WaitForWorkers
) -> None:
    seed = int(os.environ.get("MTXL_RL_SEED") or time.time_ns() % 1_000_000)
    generator, run_dir = random.Random(seed), tmp_path / "run"
    faults = [
        f"kill:{generator.randrange(2)}:{generator.randrange(3)}:{generator.random()}"
        for _ in range(NUM_KILLS)
    ]
    process = start(",".join(faults), "2", run_dir, *TO_THE_END)
    code, _, errors = output(process)
    with capfd.disabled():
        sys.stdout.write(f"\nMTXL_RL_SEED={seed}: {faults}, workers {sizes(run_dir)}\n")
    assert code == 0, errors[-2000:]
    assert sizes(run_dir) == [2] * (NUM_KILLS + 1)
    wait_for_workers(run_dir)
    assert_same_run(run_dir, reference)


def test_a_run_continues_without_a_machine(
    tmp_path: Path, reference: Path, wait_for_workers: WaitForWorkers
) -> None:
    run_dir = tmp_path / "run"
    code, out, errors = output(start("", "machines", run_dir, *TO_THE_END))
    assert code == 0, errors[-2000:]
    assert sizes(run_dir) == [2, 1]
    assert "continuing from the last checkpoint with those that are left" in out + errors
    wait_for_workers(run_dir)
    assert_same_run(run_dir, reference)
    # Ray's checkpoints are links to the run's.
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    assert any(path.samefile(newest) for path in (run_dir / "ray").glob("*/*.pt"))


def test_a_run_that_one_process_began_is_continued_by_two_workers(
    tmp_path: Path, reference: Path, wait_for_workers: WaitForWorkers
) -> None:
    run_dir = tmp_path / "run"
    options = [*OPTIONS, f"total_steps={TOTAL_STEPS}", f"run_dir={run_dir}"]
    run(compose_config(options), callbacks=[StopAfterHalf()])
    assert checkpoint.load(run_dir)["step"] == TOTAL_STEPS // 2
    resume = [f"resume={run_dir}", "num_processes=2"]
    code, _, errors = output(start("", "2", run_dir, *resume, task=[]))
    assert code == 0, errors[-2000:]
    assert sizes(run_dir) == [2]
    wait_for_workers(run_dir)
    assert_same_run(run_dir, reference)


def test_ctrl_c_saves_also_where_a_worker_has_no_share(
    tmp_path: Path, wait_for_workers: WaitForWorkers
) -> None:
    # Three workers, of which two train: 4 environments do not divide by 3.
    run_dir = tmp_path / "run"
    options = ["num_processes=4", "total_steps=1000000", "checkpoint_seconds=3"]
    process = start("", "3", run_dir, *options)
    while process.poll() is None and not list(run_dir.glob("checkpoints/step_*.pt")):
        time.sleep(0.1)
    assert process.poll() is None, output(process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, errors = output(process)
    assert code == 130, errors[-2000:]
    assert sizes(run_dir) == [3]
    assert "4 environments in 2 processes of 2" in out + errors
    wait_for_workers(run_dir)
    rows = read_rows(run_dir)
    assert checkpoint.load(run_dir)["step"] == rows[-1]["step"]
    assert {row["world/size"] for row in rows} == {2}


def test_an_error_ends_the_run(tmp_path: Path, wait_for_workers: WaitForWorkers) -> None:
    run_dir = tmp_path / "run"
    process = start("raise:1:2:0", "2", run_dir, *TO_THE_END)
    code, _, errors = output(process)
    assert code == 1
    sentence = (
        "error: the disk is on fire; at step 128 in process 1 of 2; the last checkpoint is "
        f"{checkpoint.latest(run_dir)}; continue with: python -m mtxl_rl.train resume={run_dir}"
    )
    assert sentence in errors
    assert sizes(run_dir) == [2]
    wait_for_workers(run_dir)
