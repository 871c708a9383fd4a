"""A run on several processes computes what the same run computes on one."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import mtxl_rl.train
from mtxl_rl.compose import compose_config
from mtxl_rl.config_files import load_config
from mtxl_rl.runtime import distributed
from mtxl_rl.runtime.distributed import check_devices, choose_num_processes, joined_world
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.train import main

PRETRAINED = Path(__file__).parents[2] / "pretrained" / "TMaze"
WORKER = str(Path(__file__).with_name("data_parallel_worker.py"))
# Episodes of 10 steps reset inside spans of 8, so valid steps differ between processes.
OPTIONS = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=8", "device=cpu",
    "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=16",
    "ppo.bptt_segments=2", "ppo.num_minibatches=4", "ppo.num_epochs=4", "compile=false",
    "total_steps=10000",
]  # fmt: skip
KEYS = (
    "losses/policy_loss",
    "losses/value_loss",
    "losses/approx_kl",
    "losses/epochs",
    "losses/explained_variance",
)
Result = tuple[dict[str, Any], list[Any]]


def train(
    folder: Path,
    num_processes: int,
    *options: str,
    num_iterations: int = 2,
    resume: str = "new",
    dtype: str = "float64",
) -> Result:
    """Weights and metrics of some iterations, by torchrun if there are several processes."""
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    launcher = torchrun if num_processes > 1 else []
    arguments = [WORKER, str(folder), str(num_iterations), resume, dtype, *OPTIONS, *options]
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = torch.load(folder / "weights.pt")
    return weights, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def assert_same(result: Result, reference: Result, *, atol: float = 1e-9) -> None:
    for name, weight in result[0].items():
        torch.testing.assert_close(reference[0][name], weight, rtol=0, atol=atol, msg=name)
    if atol > 1e-9:
        return
    for expected, metrics in zip(result[1], reference[1], strict=True):
        # Metrics are summed in float32; the policy loss is a small sum of terms of size 1.
        assert {key: metrics[key] for key in KEYS} == pytest.approx(
            {key: expected[key] for key in KEYS}, rel=1e-6, abs=1e-7
        )
        for key in ("charts/episodic_return", "memory/drift"):
            assert metrics.get(key) == pytest.approx(expected.get(key))


@pytest.mark.processes
def test_two_processes_continued_by_one_learn_what_one_learns(tmp_path: Path) -> None:
    # A teacher that leads 3 of 8 environments: 2 of one process, 1 of the other.
    options = [
        f"teacher.policy={PRETRAINED}", "teacher.beta=0.375", "auxiliary.predict=[obs]",
        "ppo.memory_refresh=epoch",
    ]  # fmt: skip
    weights, metrics = train(tmp_path / "one", 1, *options, num_iterations=4)
    assert metrics[0]["memory/drift"] > 0
    _, first = train(tmp_path / "two", 2, *options)
    resume = str(tmp_path / "two")
    last_weights, last = train(tmp_path / "continued", 1, *options, resume=resume)
    assert_same((weights, metrics), (last_weights, first + last))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "num_epochs", "atol"),
    [
        ("float64", 4, 1e-9),
        ("float32", 1, 1e-5),  # 16 updates; after 64 the weights differ by 3e-5.
    ],
)
def test_a_run_continued_by_two_one_and_four_processes_equals_one_that_never_stopped(
    tmp_path: Path, dtype: str, num_epochs: int, atol: float
) -> None:
    def result(num_processes: int, *, num_iterations: int, resume: str = "new") -> Result:
        folder = tmp_path / str(num_processes if num_iterations < 4 else "whole")
        return train(
            folder,
            num_processes,
            f"ppo.num_epochs={num_epochs}",
            num_iterations=num_iterations,
            resume=resume,
            dtype=dtype,
        )

    weights, metrics = result(1, num_iterations=4)
    _, first = result(2, num_iterations=2)
    _, second = result(1, num_iterations=1, resume=str(tmp_path / "2"))
    last, third = result(4, num_iterations=1, resume=str(tmp_path / "1"))
    assert_same((weights, metrics), (last, first + second + third), atol=atol)


@pytest.mark.slow
def test_four_processes_stop_an_epoch_together(tmp_path: Path) -> None:
    options = ["ppo.target_kl=1e-5", "ppo.num_minibatches=2"]
    single = train(tmp_path / "one", 1, *options)
    assert single[1][-1]["losses/epochs"] < 4
    assert_same(single, train(tmp_path / "four", 4, *options))


@pytest.mark.processes
def test_the_train_command_starts_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(mtxl_rl.train, "choose_num_processes", lambda *_, **__: (2, "a test"))
    run_dir = tmp_path / "run"
    main([*OPTIONS[:-1], "total_steps=256", f"run_dir={run_dir}"])
    printed = capfd.readouterr().out
    assert printed.startswith("num_processes=2: a test\nTMaze: ")
    assert printed.count("num_processes=2: ") == 1
    assert "8 environments in 2 processes of 4" in printed
    rows = read_rows(run_dir)
    assert [row["world/size"] for row in rows] == [2, 2]
    for row in rows:
        mean, longest = row["world/wait_seconds_mean"], row["world/wait_seconds_max"]
        assert mean is not None
        assert longest is not None
        assert 0 < mean <= longest
        waits = [row[f"world/wait_seconds_rank_{rank}"] for rank in range(2)]
        assert waits == [wait for wait in waits if wait is not None]
        assert max(wait for wait in waits if wait is not None) == longest
    assert (run_dir / "policy.safetensors").exists()
    assert load_config(run_dir).num_processes == 0  # A resumed run chooses anew.


def test_processes_have_enough_environments_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtxl_rl.runtime.distributed.num_cores", lambda: 4)
    cpu = torch.device("cpu")
    assert choose_num_processes([1, 2, 4, 8], num_envs=128, device=cpu)[0] == 4
    assert choose_num_processes([1, 2, 4, 8], num_envs=32, device=cpu)[0] == 2
    assert choose_num_processes([1, 2, 4], num_envs=4, device=cpu)[0] == 1
    size, reason = choose_num_processes([1, 5], num_envs=1000, device=cpu)
    assert size == 1
    assert reason == (
        "one per CPU core (4), if each has 16 of the 1000 environments; 4 cannot have equal shares"
    )


def test_the_first_of_the_processes_of_torchrun_prints_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(mtxl_rl.train, "run_until_signal", lambda _: (tmp_path, 0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, run_id, expected in [
        ("0", "none", "num_processes=2: torchrun, or another launcher, started them\nTMaze: "),
        ("1", "none", ""),
        ("0", f"{distributed.RUN_ID}1", ""),  # The command has printed it, and started this one.
    ]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        main(OPTIONS)
        printed = capsys.readouterr().out
        assert printed.startswith(expected)
        assert bool(printed) == bool(expected)


def test_the_legal_numbers_of_processes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"num_processes=3 does not .* choose one of \[1, 2, 4, 8\]"
    ):
        compose_config([*OPTIONS, "num_envs=16", "num_processes=3"])


def test_processes_on_gpus_need_one_each_and_cores_can_be_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "num_cores", lambda: 2)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    check_devices(2, cuda)
    with pytest.raises(ValueError, match=r"num_processes=3 needs .* 2; give num_processes=2"):
        check_devices(3, cuda)
    check_devices(2, cpu)
    assert capsys.readouterr().out == ""
    check_devices(3, cpu)
    assert "num_processes=3 share 2 CPU cores" in capsys.readouterr().out


def test_processes_on_gpus_that_do_not_exist_are_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit):
        main([*OPTIONS, "device=cuda", "num_processes=2"])
    assert "use device=cpu, or install a CUDA build" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        main([*OPTIONS, "launcher=ray", "num_processes=2", f"run_dir={tmp_path / 'run'}"])
    assert "pip install 'mtxl_rl[ray]', or remove launcher=ray" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_launcher_is_named() -> None:
    with pytest.raises(ValueError, match=r"launcher=rya is unknown; choose one of ray, torch"):
        compose_config([*OPTIONS, "launcher=rya"])


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port, in the variables of process 0 of 2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number)}
    for name, setting in names.items():
        monkeypatch.setenv(name, setting)
    return number


def join() -> None:
    with joined_world(torch.device("cpu")):
        pass


def test_a_process_that_does_not_arrive_is_named(port: int) -> None:
    with pytest.raises(RuntimeError, match=f"0 of 2 waited 1 s at 127.0.0.1:{port} for process 1"):
        join()


def test_a_port_in_use_is_named(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(
            RuntimeError, match=f"cannot listen on 127.0.0.1:{port}: .* MASTER_PORT"
        ):
            join()


@pytest.mark.training
def test_an_absent_process_0_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError, match=f"1 of 2 cannot reach 127.0.0.1:{port}.* is process 0"):
        join()


@pytest.mark.usefixtures("port")
def test_incomplete_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 is set without RANK; start"):
        join()


@pytest.mark.slow
@pytest.mark.usefixtures("port")
def test_processes_with_different_options_end_at_the_start(tmp_path: Path) -> None:
    processes = []
    for rank in range(2):
        options = [*OPTIONS, f"ppo.gamma=0.9{rank}", f"run_dir={tmp_path / 'run'}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mtxl_rl.train", *options],
            env=os.environ | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "error: ppo.gamma is 0.9 in process 0 and 0.91 in process 1; start all" in errors
    assert not (tmp_path / "run").exists()
