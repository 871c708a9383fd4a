"""A run of several processes that is stopped, or loses a process, ends and can be continued."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtxl_rl import train
from mtxl_rl.runtime import distributed
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.train import main

WORKER = str(Path(__file__).with_name("failing_worker.py"))
STEPS = 64
"""Steps of an iteration."""
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "device=cpu",
    "torso.width=16", "torso.num_heads=2", "torso.window_length=4", "torso.segment_length=4",
    "ppo.rollout_length=16", "ppo.bptt_segments=2", "ppo.num_minibatches=2", "ppo.num_epochs=2",
    "compile=false",
]  # fmt: skip
NUM_KILLS = int(os.environ.get("MTXL_RL_KILLS", "20"))
MAX_SECONDS = 600
"""Until a run has ended in which no process waits in vain: for that, each has an hour."""
TOTAL_STEPS = STEPS * (3 * NUM_KILLS + 4)
"""Of a run that is killed so often; at most 3 iterations are saved before a kill."""
Inject = Callable[[str], None]


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Inject:
    """Let the command's processes run `failing_worker.py` with a fault."""

    def set_fault(fault: str) -> None:
        def launch(arguments: list[str], *, num_processes: int) -> int:
            return distributed.launch([WORKER, fault, *arguments[2:]], num_processes=num_processes)

        monkeypatch.setattr(train, "launch", launch)

    return set_fault


def exit_code(options: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(options)
    assert isinstance(end.value.code, int)
    return end.value.code


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_no_process_is_left(run_dir: Path) -> None:
    pids = [int(path.read_text()) for path in run_dir.with_suffix(".pids").iterdir()]
    assert len(pids) == 2
    assert not [pid for pid in pids if is_running(pid)]


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints; every run saves one after its first iteration."""
    return sorted(checkpoint.step_of(path) for path in (run_dir / "checkpoints").glob("step_*"))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("SIGINT:0:1:0", 130),
        pytest.param("SIGTERM:1:1:0", 143, marks=pytest.mark.slow),
        pytest.param("terminate:1:1:0", 143, marks=pytest.mark.slow),  # One process alone.
    ],
)
def test_a_signal_saves_once_and_ends_all_processes(
    inject: Inject, tmp_path: Path, capfd: pytest.CaptureFixture, fault: str, code: int
) -> None:
    run_dir = tmp_path / "run"
    inject(fault)
    options = [*OPTIONS, "num_processes=2", f"run_dir={run_dir}", "total_steps=1000000"]
    assert exit_code([*options, "checkpoint_seconds=1000000"]) == code
    assert_no_process_is_left(run_dir)
    assert saved_steps(run_dir) == [STEPS, read_rows(run_dir)[-1]["step"]]
    assert capfd.readouterr().out.count("; saved ") == 1


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "code", "sentences"),
    [
        ("kill:0:2:0", 137, ["process 0 of 2 was ended by SIGKILL"]),
        (
            "raise:1:2:0", 1,
            ["RuntimeError: the disk is on fire",
             "at step 128 in process 1 of 2; the last checkpoint is ",
             "process 1 of 2 ended with code 1"],
        ),
    ],
)  # fmt: skip
def test_a_process_that_fails_ends_the_run_with_its_error(
    inject: Inject,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    fault: str,
    code: int,
    sentences: list[str],
) -> None:
    run_dir = tmp_path / "run"
    inject(fault)
    options = [*OPTIONS, "num_processes=2", f"run_dir={run_dir}", "checkpoint_seconds=0"]
    begin = time.monotonic()
    assert exit_code(options) == code
    assert time.monotonic() - begin < MAX_SECONDS
    assert_no_process_is_left(run_dir)
    errors = capfd.readouterr().err
    last = f"the last checkpoint is {checkpoint.latest(run_dir)}; continue with: "
    for sentence in [*sentences, last]:
        assert sentence in errors
    assert errors.count("error: ") <= 2  # At most one sentence of each process.


@pytest.mark.slow
def test_an_evaluation_may_take_longer_than_the_timeout(inject: Inject, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    inject("evaluate:0:0:10")
    main([
        *OPTIONS, "num_processes=2", f"run_dir={run_dir}", "total_steps=128", "eval_every=64",
        "eval_episodes=2", "eval_video=false",
    ])  # fmt: skip
    assert_no_process_is_left(run_dir)
    assert len([row for row in read_rows(run_dir) if "eval/episodic_return" in row]) == 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_processes_without_saving(inject: Inject, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    inject("twice:0:1:0")
    options = [*OPTIONS, "num_processes=2", f"run_dir={run_dir}", "total_steps=1000000"]
    assert exit_code([*options, "checkpoint_seconds=1000000"]) == 130
    assert_no_process_is_left(run_dir)
    assert saved_steps(run_dir) == [STEPS]


@pytest.mark.slow
def test_a_process_that_hangs_does_not_outlive_a_failure(
    inject: Inject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "SHUTDOWN_SECONDS", 6 * MAX_SECONDS)
    run_dir = tmp_path / "run"
    inject("hang:1:2:0")
    options = [*OPTIONS, "num_processes=2", f"run_dir={run_dir}", "checkpoint_seconds=0"]
    begin = time.monotonic()
    assert exit_code(options) == 137
    assert time.monotonic() - begin < MAX_SECONDS  # torch waits 30 s.
    assert_no_process_is_left(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("SIGINT", "130"),
        ("SIGTERM", "143"),
        ("slurm", "143"),  # Slurm signals every process, and torchrun passes its own signal on.
    ],
)
def test_a_signal_to_torchrun_saves_once(tmp_path: Path, kind: str, code: str) -> None:
    run_dir = tmp_path / "run"
    done = torchrun(f"{kind}:0:1:0", run_dir, "checkpoint_seconds=1000000")
    assert done.returncode != 0  # torchrun's own code, with its traceback.
    codes = [path.read_text() for path in run_dir.with_suffix(".codes").iterdir()]
    assert codes == [code] * 2
    assert_no_process_is_left(run_dir)
    assert saved_steps(run_dir) == [STEPS, read_rows(run_dir)[-1]["step"]]


@pytest.mark.slow
def test_torchrun_ends_with_a_killed_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = torchrun("kill:1:2:0", run_dir, "checkpoint_seconds=0")
    assert done.returncode != 0
    assert_no_process_is_left(run_dir)
    assert "error: lost another process of the run: " in done.stderr
    assert f"in process 0 of 2; the last checkpoint is {checkpoint.latest(run_dir)}" in done.stderr
    root_cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root_cause
    assert "exitcode  : -9" in root_cause


def torchrun(fault: str, run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [WORKER, fault, *OPTIONS, f"run_dir={run_dir}", "total_steps=1000000", *options]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_processes_save_and_end_when_their_launcher_is_killed(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    run_dir = tmp_path / "run"
    arguments = [WORKER, "SIGKILL:0:1:0", *OPTIONS, f"run_dir={run_dir}", "total_steps=1000000"]
    launcher = [sys.executable, str(Path(__file__).with_name("launching_worker.py"))]
    # Without pipes, which `run` would read until the last process has ended.
    done = subprocess.run([*launcher, *arguments], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL
    codes = run_dir.with_suffix(".codes")
    wait_until(lambda: len(list(codes.glob("*"))) == 2)
    assert [path.read_text() for path in codes.iterdir()] == ["143", "143"]
    assert checkpoint.latest(run_dir) is not None


@pytest.mark.slow
def test_a_run_killed_many_times_equals_one_that_was_not(
    inject: Inject, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    seed = int(os.environ.get("MTXL_RL_SEED") or time.time_ns() % 1_000_000)
    generator, run_dir = random.Random(seed), tmp_path / "run"
    options = [*OPTIONS, "num_processes=2", f"total_steps={TOTAL_STEPS}", "checkpoint_seconds=0"]
    num_lost, start = 0, [*options, f"run_dir={run_dir}"]
    for _ in range(NUM_KILLS):
        fraction = generator.random()
        inject(f"kill:{generator.randrange(2)}:{generator.randrange(3)}:{fraction}")
        assert exit_code(start) == 137
        assert_no_process_is_left(run_dir)
        if checkpoint.latest(run_dir) is None:
            num_lost += 1
            shutil.rmtree(run_dir, ignore_errors=True)
        else:
            start = [f"resume={run_dir}"]
    newest = checkpoint.latest(run_dir)
    step = 0 if newest is None else checkpoint.step_of(newest)
    with capfd.disabled():
        sys.stdout.write(
            f"\nMTXL_RL_SEED={seed}: {NUM_KILLS} kills, {num_lost} before the first checkpoint; at "
            f"step {step} of {TOTAL_STEPS}\n"
        )
    for arguments in (start, [*options, f"run_dir={tmp_path / 'whole'}"]):
        inject("kill:-1:0:0")  # Of no process.
        main(arguments)
    assert_equal_trees(state_of(run_dir), state_of(tmp_path / "whole"))
    assert learning(run_dir) == learning(tmp_path / "whole")


def state_of(run_dir: Path) -> dict[str, object]:
    """The checkpoint without the options, which name the folder."""
    return {key: part for key, part in checkpoint.load(run_dir).items() if key != "description"}


def assert_equal_trees(state: object, expected: object, *, path: str = "state") -> None:
    if isinstance(state, torch.Tensor):
        assert isinstance(expected, torch.Tensor), path
        assert torch.equal(state, expected), path
    elif isinstance(state, dict):
        assert isinstance(expected, dict), path
        assert state.keys() == expected.keys(), path
        for key in state:
            assert_equal_trees(state[key], expected[key], path=f"{path}/{key}")
    else:
        assert state == expected, path


def learning(run_dir: Path) -> list[str]:
    """Metrics without those of time."""
    return [
        json.dumps({key: row[key] for key in row if "second" not in key and key != "charts/SPS"})
        for row in read_rows(run_dir)
    ]
