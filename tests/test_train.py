"""Training end to end: the commands in processes of their own, and what a user can do wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtxl_rl.agents.transition import observation_shapes
from mtxl_rl.build import build_policy, rollout_shape
from mtxl_rl.config import (
    choices,
    compose_config,
    device_overrides,
    load_config,
    save_config,
)
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.train import Run, main, run

TINY = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "ppo.rollout_length=32",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=4", "device=cpu",
]  # fmt: skip


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def command(*arguments: str, module: str = "train") -> list[str]:
    return [sys.executable, "-m", f"mtxl_rl.{module}", *arguments]


@pytest.mark.parametrize("option", ["policy.episode_step=false", "policy.episode_step=true"])
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(tmp_path: Path, option: str) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    total = 8 * 4 * 32
    options = [*TINY, f"total_steps={total}", option]
    run(compose_config([*options, f"run_dir={whole}"]))
    config = compose_config([*options, f"run_dir={halves}"])
    env = make_vector_env(config.env, num_envs=4, seed=stream_seed(0, 0))
    first = Run(config, env)
    first.collector.reset(seed=None)
    for _ in range(4):
        first.iterate()
    first.save(halves)
    env.close()
    (halves / "config.yaml").write_text((whole / "config.yaml").read_text())
    subprocess.run(command(f"resume={halves}"), check=True, capture_output=True, timeout=120)
    one, two = checkpoint.load(whole), checkpoint.load(halves)
    assert one["step"] == two["step"] == total
    for key, weight in one["agent"]["policy"].items():
        assert torch.equal(weight, two["agent"]["policy"][key]), key
    for key, field in one["collector"]["memory"].items():
        assert torch.equal(field, two["collector"]["memory"][key]), key
    assert one["env"].keys() == two["env"].keys()
    for key, field in one["env"].items():
        same = torch.equal(field, two["env"][key]) if torch.is_tensor(field) else (
            field == two["env"][key])  # fmt: skip
        assert same, key


def test_an_earlier_checkpoint_goes_on_in_a_folder_of_its_own(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(compose_config([*TINY, "total_steps=384", "checkpoint_seconds=0", f"run_dir={old}"]))
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    earlier = old / "checkpoints" / "step_000000000128.pt"
    with pytest.raises(SystemExit):
        main([f"resume={earlier}"])
    main([f"resume={earlier}", f"run_dir={new}"])
    assert [row["step"] for row in rows(new)] == [128, 256, 384]
    one, two = checkpoint.load(old), checkpoint.load(new)
    for key, weight in one["agent"]["policy"].items():
        assert torch.equal(weight, two["agent"]["policy"][key]), key
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("refresh", "precision", "bound"),
    [("never", "float32", 1e-5), ("epoch", "float32", 1e-5), ("epoch", "bfloat16", 0.25)],
)
def test_acting_and_learning_agree_in_every_iteration(
    tmp_path: Path, refresh: str, precision: str, bound: float
) -> None:
    options = [f"ppo.memory_refresh={refresh}", f"policy.precision={precision}"]
    options += ["ppo.learning_rate=0.003", "total_steps=2000"]
    run(compose_config([*TINY, *options, f"run_dir={tmp_path / 'run'}"]))
    found = rows(tmp_path / "run")
    assert len(found) > 10
    assert max(row["ppo/ratio_deviation"] for row in found) < bound
    assert ("memory/drift" in found[-1]) == (refresh == "epoch")
    assert {"step", "episode/return", "time/env_steps_per_second"} <= set(found[-1])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_gymnasium_environments_train(tmp_path: Path, env_id: str) -> None:
    overrides = ["env=Gymnasium", f"env.id={env_id}", *TINY[2:], "total_steps=512"]
    folder = run(compose_config([*overrides, f"run_dir={tmp_path / 'run'}"]))
    assert rows(folder)[-1]["ppo/ratio_deviation"] < 1e-5


def stopped_by(number: int, *arguments: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of a training that gets a signal when `folder` has its first row."""
    process = subprocess.Popen(
        command(*TINY, "total_steps=100000000", *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or not rows_or_none(folder):
            assert time.monotonic() < deadline, process.communicate(timeout=1)
            time.sleep(0.1)
        os.kill(process.pid, number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out


def test_sigterm_finishes_the_iteration_saves_and_exits_zero(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out = stopped_by(signal.SIGTERM, f"run_dir={folder}", folder=folder)
    assert code == 0
    assert "resume=" in out
    assert checkpoint.load(folder)["step"] == rows(folder)[-1]["step"]


def rows_or_none(folder: Path) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    return [] if not text.endswith("\n") else rows(folder)


def test_ctrl_c_ends_a_sweep_as_it_ends_a_run(tmp_path: Path) -> None:
    sweep = ["-m", "seed=1,2", f"run_dir={tmp_path}/${{seed}}"]
    code, out = stopped_by(signal.SIGINT, *sweep, folder=tmp_path / "1")
    assert code == 0
    assert "resume=" in out
    assert not (tmp_path / "2").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["env=TMaze", "totl_steps=3"], "did you mean total_steps"),
        (["env=TMaze", "env.coridor_length=3"], "did you mean env.corridor_length"),
        (["env=TMaz"], "choose one of TMaze, "),
        (["num_envs=3"], "env= is missing"),
        (["env=TMaze", "total_steps=many"], "total_steps"),
        (["env=TMaze", "torso.num_heads=7"], "must divide"),
        (["env=TMaze", "torso.segment_length=17"], "must be at most"),
        (["env=TMaze", "torso.memory_layers=2"], r"write torso\.memory_layers=\[2\]"),
        (["env=TMaze", "ppo.rollout_length=100"], "try ppo.rollout_length=128"),
        (["env=TMaze", "ppo.num_minibatches=5"], "choose one of"),
        (["env=TMaze", "env.corridor_length=0"], "at least 1"),
        (["env=TMaze", "policy.precision=int8"], "choose one of float32"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        compose_config(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "sentence"), [("cuda:77", "CUDA devices"), ("tpu", "choose auto, cpu")]
)
def test_a_device_that_is_not_there_is_told_to_who_trains_on_it(device: str, sentence: str) -> None:
    config = compose_config(["env=TMaze", f"device={device}"])  # Who reads it need not have it.
    with pytest.raises(ValueError, match=sentence):
        run(config)


def test_help_names_every_choice(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for name in [*choices("env"), *choices("torso"), *choices("model")]:
        assert name in said


def test_flags_stand_anywhere_and_a_sweep_runs_all(tmp_path: Path) -> None:
    shown = subprocess.run(
        command(TINY[0], "--cfg", "job", *TINY[1:]), capture_output=True, text=True, check=True
    ).stdout
    assert "corridor_length: 9" in shown
    sweep = ["-m", "seed=1,2", "total_steps=128", f"run_dir={tmp_path}/${{seed}}"]
    subprocess.run(command(*TINY, *sweep), capture_output=True, check=True, cwd=tmp_path)
    assert [len(rows(tmp_path / seed)) for seed in ("1", "2")] == [1, 1]


def test_mistakes_end_with_exit_code_one_and_no_traceback(tmp_path: Path) -> None:
    for arguments in (
        ["train", "env=Nowhere"],
        ["evaluate", f"checkpoint={tmp_path}"],
        ["train", "x"],
    ):
        done = subprocess.run(command(*arguments[1:], module=arguments[0]), capture_output=True,
                              text=True, timeout=60, check=False)  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    overrides = [*TINY, "total_steps=128", f"run_dir={tmp_path / 'run'}"]
    run(compose_config(overrides))
    with pytest.raises(ValueError, match="already holds a run"):
        run(compose_config(overrides))


def test_two_trainings_cannot_share_a_folder_and_a_killed_one_does_not_keep_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    overrides = [*TINY, f"run_dir={folder}"]
    first = subprocess.Popen(
        command(*overrides, "total_steps=100000000", "checkpoint_seconds=0"),
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while checkpoint.latest(folder) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for options in (overrides, [*overrides, f"resume={folder}"]):
            with pytest.raises(ValueError, match="is in use by another training process"):
                run(compose_config(options))
    finally:
        first.kill()
        first.wait(timeout=60)
    step = checkpoint.load(folder)["step"]
    main([f"resume={folder}", f"total_steps={step + 128}"])
    assert checkpoint.load(folder)["step"] == step + 128


def test_who_is_refused_a_folder_does_not_remove_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with run_lock(folder), pytest.raises(ValueError, match="is in use"), run_lock(folder):
        pass
    assert folder.is_dir()


def test_a_folder_of_a_run_that_never_began_is_not_left_behind(tmp_path: Path) -> None:
    config = compose_config([*TINY, f"run_dir={tmp_path / 'run'}", f"resume={tmp_path / 'old'}"])
    with pytest.raises(OSError, match="does not exist"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_run_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(ValueError, match=f"{name} is a file or lies below one; give the name"):
            run(compose_config([*TINY, f"run_dir={tmp_path / name}"]))


def test_a_loss_that_is_not_finite_stops_the_run_and_harms_no_weight(tmp_path: Path) -> None:
    config = compose_config([*TINY, f"run_dir={tmp_path / 'run'}"])
    env = make_vector_env(config.env, num_envs=4, seed=0)
    this = Run(config, env)
    this.collector.reset(seed=None)
    rollout, _ = this.collector.collect()
    rollout.reward[0, 3] = float("inf")
    with pytest.raises(RuntimeError, match="non-finite"):
        this.agent.update(rollout, progress=0.0)
    assert all(weight.isfinite().all() for weight in this.policy.parameters())
    env.close()


def test_a_profiled_run_ends_with_a_table_and_logs_each_parts_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose_config([*TINY, "total_steps=256", "profile=true", f"run_dir={tmp_path}"]))
    shown = capsys.readouterr().out
    for part in ("environment", "host-device copies", "acting: torso", "learner: GAE",
                 "learner: encoder", "learner: torso", "learner: heads", "learner: backward",
                 "learner: optimiser", "us/step", "of a matrix product's"):  # fmt: skip
        assert part in shown
    for part in ("env_steps", "act_steps", "learn_samples"):
        assert rows(tmp_path)[-1][f"speed/{part}_per_second"] > 0


def test_compiling_a_torso_that_has_no_such_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile=true has no effect with torso\.kind=gru"):
        compose_config([*TINY, "torso=gru", "compile=true"])


def test_who_has_no_compiler_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = compose_config([*TINY, "compile=true", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler no-such-compiler"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_sizes_that_a_torso_does_not_read_are_told(capsys: pytest.CaptureFixture) -> None:
    options = ["torso.num_heads=8", "torso.segment_length=8", "num_envs=8", "dry_run=true"]
    main(["env=TMaze", "torso=gru", *options])
    said = capsys.readouterr().out
    assert said.count("has no effect") == 1
    assert "torso.num_heads=8 has no effect with torso.kind=gru" in said
    main(["env=TMaze", "torso.num_parameters=50000", "torso.width=16", "dry_run=true"])
    told = "torso.width=16 has no effect with torso.num_parameters=50000"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["-m"]])
def test_a_misspelt_option_is_told_beside_flags_too(
    flag: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([*flag, "env=TMaze", "torso.widht=1"])
    assert "did you mean torso.width" in capsys.readouterr().err


def test_dry_run_prints_bytes_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(compose_config([*TINY, "dry_run=true", f"run_dir={tmp_path / 'run'}"]))
    out = capsys.readouterr().out
    assert "timeline" in out
    assert "model" in out
    assert not (tmp_path / "run").exists()


def test_the_command_line_wins_over_the_devices_defaults() -> None:
    assert device_overrides(["env=TMaze", "device=cpu"]) == []
    added = device_overrides(["env=TMaze", "device=cuda", "model=tiny"])
    assert "num_envs=512" in added
    assert not any(part.startswith("model=") for part in added)


def test_the_trained_policy_can_be_evaluated_with_the_memory_on_off_and_noise(
    tmp_path: Path,
) -> None:
    run(compose_config([*TINY, "total_steps=128", f"run_dir={tmp_path / 'run'}"]))
    done = subprocess.run(
        command(f"checkpoint={tmp_path / 'run'}", "episodes=10", "num_envs=5",
                "env.corridor_length=20", module="evaluate"),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "noise" in done.stdout
    assert "21.000 +- 0.000" in done.stdout
    done = subprocess.run(
        command(f"checkpoint={tmp_path / 'run'}", "episodes=1", "num_envs=1", module="evaluate"),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "(no interval)" in done.stdout
    assert "nan" not in done.stdout


def test_defaults_of_memories_that_a_run_lacks_may_change(tmp_path: Path) -> None:
    for kind in ("delta", "slots"):
        config = compose_config(["env=TMaze", f"torso.long_term={kind}"])
        save_config(config, tmp_path / "config.yaml")
        text = (tmp_path / "config.yaml").read_text()
        assert "num_slots: 16" in text
        (tmp_path / "config.yaml").write_text(text.replace("num_slots: 16", "num_slots: 5"))
        assert load_config(tmp_path).torso.slots.num_slots == (5 if kind == "slots" else 16)


def test_buffer_and_snapshots_of_a_large_window_stay_under_a_third_of_a_gigabyte() -> None:
    config = compose_config([
        "env=TMaze", "model=base", "torso.window_length=128", "torso.segment_length=32",
        "torso.num_persistent=8", "num_envs=32", "ppo.rollout_length=512", "ppo.bptt_segments=4",
    ])  # fmt: skip
    env = make_vector_env(config.env, num_envs=1, seed=0)
    with torch.device("meta"):
        observation = observation_shapes(env.single_observation_space, episode_step=False)
        policy = build_policy(config, env)
        shape = rollout_shape(config, observation, policy, num_envs=config.num_envs)
    env.close()
    assert (shape.width, shape.num_layers) == (256, 3)
    pictures = replace(shape, observation={"obs": ((64, 64, 3), torch.uint8)})
    assert sum(shape.bytes_by_part().values()) < 80e6
    assert sum(pictures.bytes_by_part().values()) < 300e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "task",
    [
        ["env=TMaze"],
        ["env=TMaze", "compile=true"],
        ["env=TMaze", "compile=true", "torso=slots"],
        ["env=TMaze", "compile=true", "profile=true"],
        ["env=MemoryMaze", "num_envs=16"],
        ["env=MemoryMaze", "num_envs=16", "compile=true"],
    ],
    ids=" ".join,
)
def test_training_on_a_gpu_acts_as_it_learns(
    precision: str, task: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = [*task, "model=tiny", "device=cuda", "total_steps=8192"]
    main([*options, f"policy.precision={precision}", f"run_dir={run_dir}"])
    bound = 1e-4 if precision == "float32" else 0.25
    assert rows(run_dir)[-1]["step"] == 8192
    assert max(row["ppo/ratio_deviation"] for row in rows(run_dir)) < bound
