"""Training end to end: the command line, resuming, interrupts, and errors of the user."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtxl_rl import evaluate
from mtxl_rl.agents.rollout import Rollout
from mtxl_rl.agents.transition import observation_shapes
from mtxl_rl.build import build_policy, rollout_shape
from mtxl_rl.command import choices, options_of
from mtxl_rl.compose import compose_config, device_overrides
from mtxl_rl.config import TrainConfig
from mtxl_rl.config_files import load_config, save_config
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.evaluation.periodic import Evaluation, evaluate_while_training
from mtxl_rl.saved_agent import SavedAgent, read_agent
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.tracking.run_record import read_record
from mtxl_rl.train import main
from mtxl_rl.training import trainer
from mtxl_rl.training.run import Run
from mtxl_rl.training.trainer import run_until_signal as run

TINY = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "ppo.rollout_length=16",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2", "device=cpu",
    "torso.width=16", "torso.num_heads=2", "ppo.num_epochs=2", "ppo.num_minibatches=2",
]  # fmt: skip


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("option", [
    "policy.episode_step=false", "policy.episode_step=true", "ppo.average_iterations=2",
    f"teacher.policy={Path(__file__).parents[2] / 'pretrained' / 'TMaze'}",
])  # fmt: skip
@pytest.mark.training
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(tmp_path: Path, option: str) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    total = 4 * 4 * 16
    options = [*TINY, f"total_steps={total}", option]
    run(compose_config([*options, f"run_dir={whole}"]))
    config = compose_config([*options, f"run_dir={halves}"])
    env = make_vector_env(config.env, num_envs=4, seed=stream_seed(0, 0))
    first = Run(config, env)
    first.start(seed=None)
    for _ in range(2):
        first.iterate()
    first.save(halves)
    env.close()
    (halves / "config.yaml").write_text((whole / "config.yaml").read_text())
    main([f"resume={halves}"])
    expected, resumed = checkpoint.load(whole), checkpoint.load(halves)
    assert expected["step"] == resumed["step"] == total
    for key, weight in expected["agent"]["policy"].items():
        assert torch.equal(weight, resumed["agent"]["policy"][key]), key
    for key, weight in expected["agent"]["average"]["weights"].items():
        assert torch.equal(weight, resumed["agent"]["average"]["weights"][key]), key
    for key, field in expected["collector"]["memory"].items():
        assert torch.equal(field, resumed["collector"]["memory"][key]), key
    assert expected["env"].keys() == resumed["env"].keys()
    for key, field in expected["env"].items():
        same = torch.equal(field, resumed["env"][key]) if torch.is_tensor(field) else (
            field == resumed["env"][key])  # fmt: skip
        assert same, key


@pytest.mark.training
def test_files_and_evaluations_have_the_average_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = list[SavedAgent]()

    def evaluate_and_keep(saved: SavedAgent, **options: Any) -> Evaluation:  # noqa: ANN401
        evaluated.append(saved)
        return evaluate_while_training(saved, **options)

    monkeypatch.setattr("mtxl_rl.training.run.evaluate_while_training", evaluate_and_keep)
    options = ["ppo.average_iterations=2", "total_steps=192", "eval_every=192", "eval_video=false"]
    run(compose_config([*TINY, *options, "eval_episodes=4", f"run_dir={tmp_path}"]))
    last = checkpoint.load(tmp_path)["agent"]["policy"]
    average = read_agent(tmp_path).weights
    assert any(not torch.equal(weight, last[key]) for key, weight in average.items())
    for saved in (*evaluated, read_agent(tmp_path / "policy.safetensors")):
        for key, weight in average.items():
            assert torch.equal(weight, saved.weights[key]), key
    assert len(evaluated) == 1
    for num_iterations in (0, 4):
        folder = tmp_path / f"{num_iterations}"
        option = f"ppo.average_iterations={num_iterations}"
        main([f"resume={tmp_path}", f"run_dir={folder}", "total_steps=256", option])
        weights, last = read_agent(folder).weights, checkpoint.load(folder)["agent"]["policy"]
        differs = any(not torch.equal(weight, last[key]) for key, weight in weights.items())
        assert differs == (num_iterations > 0)


@pytest.mark.training
def test_an_earlier_checkpoint_continues_in_another_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(compose_config([*TINY, "total_steps=192", "checkpoint_seconds=0", f"run_dir={old}"]))
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    earlier = old / "checkpoints" / "step_000000000064.pt"
    with pytest.raises(SystemExit):
        main([f"resume={earlier}"])
    main([f"resume={earlier}", f"run_dir={new}"])
    assert [row["step"] for row in rows(new)] == [64, 128, 192]
    expected, resumed = checkpoint.load(old), checkpoint.load(new)
    for key, weight in expected["agent"]["policy"].items():
        assert torch.equal(weight, resumed["agent"]["policy"][key]), key
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("refresh", "precision", "bound"),
    [("never", "float32", 1e-5), ("epoch", "float32", 1e-5), ("epoch", "bfloat16", 0.25)],
)
@pytest.mark.training
def test_acting_and_learning_agree_in_every_iteration(
    tmp_path: Path, refresh: str, precision: str, bound: float
) -> None:
    options = [f"ppo.memory_refresh={refresh}", f"policy.precision={precision}"]
    options += ["ppo.learning_rate=0.01", "total_steps=256"]
    run(compose_config([*TINY, *options, f"run_dir={tmp_path / 'run'}"]))
    logged = rows(tmp_path / "run")
    assert len(logged) == 4
    assert max(row["losses/ratio_deviation"] for row in logged) < bound
    assert ("memory/drift" in logged[-1]) == (refresh == "epoch")
    assert {"step", "charts/episodic_return", "charts/SPS"} <= set(logged[-1])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_gymnasium_environments_train(tmp_path: Path, env_id: str) -> None:
    overrides = ["env=Gymnasium", f"env.id={env_id}", *TINY[2:], "total_steps=64"]
    folder, _ = run(compose_config([*overrides, f"run_dir={tmp_path / 'run'}"]))
    assert rows(folder)[-1]["losses/ratio_deviation"] < 1e-5


def interrupt_after_an_iteration(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    iterate = Run.iterate

    def interrupted(self: Run) -> dict[str, float]:
        metrics = iterate(self)
        signal.raise_signal(number)
        return metrics

    monkeypatch.setattr(Run, "iterate", interrupted)


@pytest.mark.training
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_exits_with_the_signals_code(
    number: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    interrupt_after_an_iteration(monkeypatch, number)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, f"run_dir={tmp_path / 'run'}"])
    assert stop.value.code == code
    assert f"resume={tmp_path / 'run'}" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run")["step"] == rows(tmp_path / "run")[-1]["step"] == 64


@pytest.mark.training
def test_an_interrupt_ends_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt_after_an_iteration(monkeypatch, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "-m", "seed=1,2", f"run_dir={tmp_path}/${{seed}}"])
    assert stop.value.code == 130
    assert checkpoint.load(tmp_path / "1")["step"] == 64
    assert not (tmp_path / "2").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["env=TMaze", "totl_steps=3"], "did you mean total_steps"),
        (["env=TMaze", "lr=3e-4"], "did you mean ppo.learning_rate"),
        (["env=TMaze", "width=3"], "did you mean torso.width"),
        (["env=TMaze", "env.size=9x9"], "choose one of env.corridor_length, env.num_distractors"),
        (["env=TMaze", "env.coridor_length=3"], "did you mean env.corridor_length"),
        (["env=TMaz"], "choose one of TMaze, "),
        (["num_envs=3"], "env= is missing"),
        (["env=TMaze", "total_steps=many"], "total_steps=many must be an integer"),
        (["env=TMaze", "total_steps=1.5"], "total_steps=1.5 must be an integer"),
        (["env=TMaze", "ppo.gamma=("], r"ppo.gamma=\( must be a number, as in ppo.gamma=0.99"),
        (["env=TMaze", "compile=1"], "compile=1 must be auto, true or false"),
        (["env=TMaze", "compile=yes"], "compile=yes is unknown; choose auto, true or false"),
        (["env=TMaze", "seed=1,2"], "add -m to run all of them"),
        (["env=TMaze", "torso.num_heads=7"], "must divide"),
        (["env=TMaze", "torso.segment_length=17"], "must be at most"),
        (["env=TMaze", "torso.memory_layers=x"], "torso.memory_layers"),
        (["env=TMaze", "ppo.rollout_length=100"], "try ppo.rollout_length=128"),
        (["env=TMaze", "ppo.num_minibatches=5"], "choose one of"),
        (["env=TMaze", "env.corridor_length=0"], "at least 1"),
        (["env=TMaze", "policy.precision=int8"], "choose one of auto, float32"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        compose_config(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "sentence"), [("cuda:77", "CUDA devices"), ("tpu", "choose auto, cpu")]
)
def test_a_missing_device_is_an_error_of_training_not_of_reading(
    device: str, sentence: str
) -> None:
    config = compose_config(["env=TMaze", f"device={device}"])
    with pytest.raises(ValueError, match=sentence):
        run(config)


def test_values_are_converted_to_the_options_type() -> None:
    argv = ["env=TMaze", "total_steps=1e6", "num_envs=64.0", "torso.memory_layers=2"]
    config = compose_config([*argv, "ppo.learning_rate=1", "run_dir=runs/lr=1 (a)"])
    assert (config.total_steps, config.num_envs) == (1_000_000, 64)
    assert isinstance(config.total_steps, int)
    assert config.torso.memory_layers == [2]
    assert config.run_dir == "runs/lr=1 (a)"


def test_help_lists_every_choice_and_every_option(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for name in [*choices("env"), *choices("torso"), *choices("model")]:
        assert name in text
    for option in options_of(TrainConfig):
        assert option.description, option.name
        assert option.name == "model" or f"{option.name}=" in text
    assert "Discount per step." in text
    main(["env=TMaze", "--help"])
    assert "env.corridor_length=100" in capsys.readouterr().out


@pytest.mark.training
def test_flags_stand_anywhere_and_a_sweep_trains_every_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Hydra writes multirun.yaml.
    main([TINY[0], "--cfg", "job", *TINY[1:]])
    assert "corridor_length: 9" in capsys.readouterr().out
    main([*TINY, "-m", "seed=1,2", "total_steps=64", f"run_dir={tmp_path}/${{seed}}"])
    assert [len(rows(tmp_path / seed)) for seed in ("1", "2")] == [1, 1]
    main([f"resume={tmp_path / '1'}", "--cfg", "job"])
    assert "corridor_length: 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("x", "'x' is not an option; options are name=value, as in env=VALUE"),
        ("--lr=1", "options are name=value without dashes, as in lr=1"),
        ("--verbose", "without dashes, as in verbose=VALUE"),
        ("env=Nowhere", "env=Nowhere is unknown; choose one of"),
    ],
)
def test_arguments_that_are_not_options_are_refused(
    argument: str, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([argument])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert sentence in message


def test_options_that_cannot_change_when_resuming_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_config(compose_config(TINY), tmp_path / "config.yaml")
    for option in ("env=MemoryChain", "torso=gru", "torso.width=8", "seed=3", "model=base",
                   "initial_weights=runs/a"):  # fmt: skip
        with pytest.raises(SystemExit):
            main([f"resume={tmp_path}", option])
        name = option.partition("=")[0]
        assert f"Cannot change {name} when resuming. Remove it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"resume={tmp_path}", "ppo.gama=1"])
    assert "did you mean ppo.gamma?" in capsys.readouterr().err


@pytest.mark.training
def test_the_first_iteration_is_saved_before_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, iterate = list[Path | None](), Run.iterate

    def recorded(self: Run) -> dict[str, float]:
        saved.append(checkpoint.latest(tmp_path))
        return iterate(self)

    monkeypatch.setattr(Run, "iterate", recorded)
    run(compose_config([*TINY, "total_steps=192", "checkpoint_seconds=1e6", f"run_dir={tmp_path}"]))
    first = tmp_path / "checkpoints" / "step_000000000064.pt"
    assert saved == [None, first, first]


@pytest.mark.training
def test_a_runs_record_has_an_entry_for_the_start_and_each_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copy = tmp_path / "run", tmp_path / "copy"
    run(compose_config([*TINY, "total_steps=64", f"run_dir={folder}"]))
    main([f"resume={folder}", "total_steps=128", f"run_dir={copy}"])
    with monkeypatch.context() as patch:
        interrupt_after_an_iteration(patch, signal.SIGINT)
        with pytest.raises(SystemExit):
            main([f"resume={copy}", "total_steps=256"])
    monkeypatch.setattr(Run, "iterate", lambda _: {}["missing"])
    with pytest.raises(KeyError):
        main([f"resume={copy}", "total_steps=256"])
    first, *others = read_record(copy)
    assert [first] == read_record(folder)
    parts = [(e["first_step"], e["last_step"], e["outcome"]) for e in (first, *others)]
    assert parts[:3] == [
        (0, 64, "finished"), (64, 128, "finished"), (128, 192, "stopped by SIGINT"),
    ]  # fmt: skip
    assert parts[3][2].startswith("KeyError: 'missing'; at step 192; the last checkpoint is ")
    assert first["command"] == shlex.join(sys.orig_argv)
    assert first["torch"] == torch.__version__
    assert first["start"] <= first["end"] <= others[0]["start"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    overrides = [*TINY, "total_steps=64", f"run_dir={tmp_path / 'run'}"]
    run(compose_config(overrides))
    with pytest.raises(ValueError, match="already holds a run"):
        run(compose_config(overrides))


@pytest.mark.training
def test_two_trainings_cannot_share_a_folder_and_a_killed_one_does_not_keep_it(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    folder = tmp_path / "run"
    overrides = [*TINY, f"run_dir={folder}"]
    options = [*overrides, "total_steps=100000000", "checkpoint_seconds=0", "compile=false"]
    first = subprocess.Popen(
        [sys.executable, "-m", "mtxl_rl.train", *options], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: checkpoint.latest(folder) is not None)
        for options in (overrides, [*overrides, f"resume={folder}"]):
            with pytest.raises(ValueError, match="is in use by another training process"):
                run(compose_config(options))
    finally:
        first.kill()
        first.wait()
    step = checkpoint.load(folder)["step"]
    main([f"resume={folder}", f"total_steps={step + 64}"])
    assert checkpoint.load(folder)["step"] == step + 64


def test_a_process_without_the_lock_does_not_remove_the_folder(tmp_path: Path) -> None:
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
    training = Run(config, env)
    training.collector.reset(seed=None)
    rollout, _ = training.collector.collect()
    rollout.training_reward[0, 3] = float("inf")
    with pytest.raises(RuntimeError, match="non-finite"):
        training.agent.update(rollout, progress=0.0)
    assert all(weight.isfinite().all() for weight in training.policy.parameters())
    env.close()


@pytest.mark.training
def test_a_profiled_run_ends_with_a_table_and_logs_each_parts_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(compose_config([*TINY, "total_steps=192", "profile=true", f"run_dir={tmp_path}"]))
    shown = capsys.readouterr().out
    for part in ("environment", "acting", "learning"):
        assert part in shown
    for part in ("env", "act", "learn"):
        assert rows(tmp_path)[-1][f"time/{part}_seconds"] > 0


def test_compiling_a_torso_that_has_no_such_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile=true has no effect with torso\.kind=gru"):
        compose_config([*TINY, "torso=gru", "compile=true"])


def test_a_missing_compiler_is_an_error_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = compose_config([*TINY, "compile=true", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler no-such-compiler"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_sizes_that_a_torso_does_not_read_are_reported(capsys: pytest.CaptureFixture) -> None:
    options = ["torso.num_heads=8", "torso.segment_length=8", "num_envs=8", "dry_run=true"]
    main(["env=TMaze", "torso=gru", *options])
    text = capsys.readouterr().out
    assert text.count("has no effect") == 1
    assert "torso.num_heads=8 has no effect with torso.kind=gru" in text
    main(["env=TMaze", "torso.num_parameters=50000", "torso.width=16", "dry_run=true"])
    expected = "torso.width=16 has no effect with torso.num_parameters=50000"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["-m"]])
def test_a_misspelt_option_next_to_flags_is_refused(
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


def test_a_command_prints_its_plan_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def slow(*_: object, **__: object) -> None:
        raise ValueError("the environments are made")

    monkeypatch.setattr(trainer, "make_vector_env", slow)
    for task in ("TMaze", "MemoryMaze", "MysteryPath", "GridMemoryMaze-GPS"):
        with pytest.raises(ValueError, match="are made"):
            main([f"env={task}", "device=cpu", "num_processes=1", f"run_dir={tmp_path / 'run'}"])
    short, rest = capsys.readouterr().out.split("MemoryMaze: ", maxsplit=1)
    long, rest = rest.split("MysteryPath: ")
    unsolved, maze = rest.split("GridMemoryMaze: ")
    assert "What to expect: no agent has learned this task" in unsolved
    assert "What to expect: a return of 75" in maze
    for option in ("torso=gtrxl", "++env.size=13x13"):
        with pytest.raises(ValueError, match="are made"):
            main(["env=GridMemoryMaze-GPS", "device=cpu", "num_processes=1", option])
        assert "What to expect" not in capsys.readouterr().out
    processes, plan = short.split("\n", maxsplit=1)
    assert processes == "num_processes=1: set in the options; 0 lets the machine decide"
    assert plan.startswith("TMaze: 400,000 steps in 98 iterations of 32 environments x 128 steps")
    assert "torso=mtxl model=tiny, cpu in float32" in short
    assert "how long it takes on this machine (ETA), and whether compiling saves time" in short
    assert "What to expect: success 0.98" in short
    assert "For a result in minutes" not in short
    assert "For a result in minutes: python -m mtxl_rl.train env=TMaze" in long


@pytest.mark.parametrize("env", ["RepeatFirst", "CountRecall", "Concentration"])
@pytest.mark.training
def test_a_task_whose_config_serves_several_tasks_trains(tmp_path: Path, env: str) -> None:
    main([f"env={env}", *TINY[2:], f"run_dir={tmp_path / 'run'}", "total_steps=64"])
    assert rows(tmp_path / "run")[-1]["step"] == 64


def test_the_command_line_wins_over_the_devices_defaults() -> None:
    assert device_overrides(["env=TMaze", "device=cpu"]) == []
    added = device_overrides(["env=TMaze", "device=cuda", "model=tiny"])
    assert "num_envs=512" in added
    assert not any(part.startswith(("model=", "policy.")) for part in added)


def test_the_precision_is_chosen_by_the_device_and_not_saved() -> None:
    config = compose_config([*TINY, "env=TMaze"])
    policy = config.policy
    assert policy.precision == "auto"
    assert policy.for_device(torch.device("cuda")).precision == "bfloat16"
    for precision in ("float32", "bfloat16"):
        explicit = replace(policy, precision=precision)
        assert explicit.for_device(torch.device("cuda")) == explicit
    with closing(make_vector_env(config.env, num_envs=1, seed=0)) as env:
        assert build_policy(config, env, torch.device("cpu")).config.precision == "float32"
    assert config.policy.precision == "auto"


@pytest.mark.training
def test_a_run_is_evaluated_with_its_memory_on_zeroed_and_replaced_by_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(compose_config([*TINY, "total_steps=64", f"run_dir={tmp_path / 'run'}"]))
    options = ["episodes=10", "num_envs=5", "env.corridor_length=20"]
    evaluate.main([f"checkpoint={tmp_path / 'run'}", *options])
    table = capsys.readouterr().out
    for memory in ("on", "zero", "noise"):
        assert memory in table
    assert "21.000 +- 0.000" in table
    evaluate.main([f"checkpoint={tmp_path / 'run'}", "episodes=1", "num_envs=1", "memory=on"])
    table = capsys.readouterr().out
    assert "(no interval)" in table
    assert "nan" not in table


def test_a_saved_configuration_is_loaded_unchanged(tmp_path: Path) -> None:
    for option in (
        "torso.long_term=delta", "torso.long_term=slots", "torso=gru", "compile=true",
        "compile=false", "compile=auto",
    ):  # fmt: skip
        config = compose_config([*TINY, option])
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path) == config


def test_buffer_and_snapshots_of_a_large_window_stay_under_a_third_of_a_gigabyte() -> None:
    config = compose_config([
        "env=TMaze", "model=base", "torso.window_length=128", "torso.segment_length=32",
        "torso.num_persistent=8", "num_envs=32", "ppo.rollout_length=512", "ppo.bptt_segments=4",
    ])  # fmt: skip
    env = make_vector_env(config.env, num_envs=1, seed=0)
    with torch.device("meta"):
        observation = observation_shapes(env.single_observation_space, episode_step=False)
        policy = build_policy(config, env, torch.device("meta"))
        shape = rollout_shape(config, observation, policy, num_envs=config.num_envs)
    env.close()
    assert (shape.width, shape.num_layers) == (256, 3)
    pictures = replace(shape, observation={"obs": ((64, 64, 3), torch.uint8)})
    assert sum(Rollout(shape, device="meta").nbytes_by_part().values()) < 80e6
    assert sum(Rollout(pictures, device="meta").nbytes_by_part().values()) < 300e6


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
    torch._dynamo.utils.counters.clear()
    main([*options, f"policy.precision={precision}", f"run_dir={run_dir}"])
    bound = 1e-4 if precision == "float32" else 0.25
    assert rows(run_dir)[-1]["step"] == 8192
    assert max(row["losses/ratio_deviation"] for row in rows(run_dir)) < bound
    # torch counts the functions that it was to record as a CUDA graph and did not.
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
