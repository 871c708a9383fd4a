"""Training from Python: options, own environments, callbacks, and what comes back."""

import inspect
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import mtxl_rl
from mtxl_rl.agents.actor import Episode
from mtxl_rl.compose import compose_config
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.tracking.run_record import read_record
from mtxl_rl.training.run import Run
from mtxl_rl.training.trainer import run_until_signal as run

SIZES = {
    "model": "tiny", "device": "cpu", "torso.width": 16, "torso.num_heads": 2,
    "torso.window_length": 4, "torso.segment_length": 4, "ppo.rollout_length": 16,
    "ppo.bptt_segments": 2, "ppo.num_epochs": 1, "checkpoint_seconds": 0, "compile": False,
}  # fmt: skip
TINY = {**SIZES, "env.corridor_length": 9, "num_envs": 4, "ppo.num_minibatches": 2}


class Count(gymnasium.Env[Any, Any]):
    """Episodes of five steps; the observation counts them."""

    observation_space = spaces.Discrete(6)
    action_space = spaces.Discrete(2)

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.t = 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401, ARG002, D102
        self.t += 1
        return self.t, 1.0, self.t == 5, False, {}


class Recorder:
    """Records its calls; stops the run at a step."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stop_at = stop_at

    def on_episode(self, episode: Episode) -> None:  # noqa: D102
        self.calls.append(("episode", episode.length))

    def on_iteration(self, metrics: Mapping[str, float | int]) -> None:  # noqa: D102
        self.calls.append(("iteration", metrics["step"]))
        if metrics["step"] >= self.stop_at:
            raise mtxl_rl.StopTraining("good enough")

    def on_checkpoint(self, path: Path, metrics: Mapping[str, float | int]) -> None:  # noqa: D102
        self.calls.append(("checkpoint", (path.name, metrics["step"])))


@pytest.mark.training
def test_the_function_trains_what_the_command_line_trains(tmp_path: Path) -> None:
    options = [f"{name}={value}" for name, value in TINY.items()]
    run(compose_config(["env=TMaze", *options, "total_steps=128", f"run_dir={tmp_path / 'a'}"]))
    result = mtxl_rl.train("TMaze", TINY, total_steps=128, run_dir=tmp_path / "b")
    expected, from_function = checkpoint.load(tmp_path / "a"), checkpoint.load(tmp_path / "b")
    for key, weight in expected["agent"]["policy"].items():
        assert torch.equal(weight, from_function["agent"]["policy"][key]), key
    assert (result.run_dir, result.outcome, result.best) == (tmp_path / "b", "finished", None)
    assert result.metrics == read_rows(tmp_path / "b")[-1]
    assert result.agent.step == result.metrics["step"] == 128
    assert [e["length"] for e in result.agent.evaluate(episodes=2)] == [10, 10]


def test_the_module_and_the_function_are_one_name() -> None:
    from mtxl_rl import train

    assert train is mtxl_rl.train is sys.modules["mtxl_rl.train"]
    assert callable(train)
    assert callable(train.main)
    assert "env" in inspect.signature(train).parameters


@pytest.mark.parametrize(
    ("env", "num_envs"),
    [
        (Count, 3), (lambda: Count(), 3), (Count(), 1), ("CartPole-v1", 4),
        (SyncVectorEnv([Count] * 3, autoreset_mode=AutoresetMode.NEXT_STEP), 3),
    ],
    ids=["class", "function", "env", "id", "vector"],
)  # fmt: skip
@pytest.mark.training
def test_an_environment_of_python_trains_and_evaluates(
    tmp_path: Path,
    env: Any,  # noqa: ANN401
    num_envs: int,
) -> None:
    options = (
        {"num_envs": num_envs} if env is Count or callable(env) or env == "CartPole-v1" else {}
    )
    result = mtxl_rl.train(
        env, SIZES, total_steps=num_envs * 32, run_dir=tmp_path, verbose=False, **options
    )
    assert [row["step"] for row in read_rows(tmp_path)] == [num_envs * 16, num_envs * 32]
    assert max(row["losses/ratio_deviation"] for row in read_rows(tmp_path)) < 1e-5
    if env == "CartPole-v1":
        return
    assert [e["return"] for e in result.agent.evaluate(env, episodes=3)] == [5, 5, 5]
    with pytest.raises(ValueError, match=r"pass the environment again"):
        result.agent.evaluate()
    more = mtxl_rl.train(env, resume=tmp_path, total_steps=num_envs * 48, verbose=False)
    assert more.metrics["step"] == num_envs * 48


def test_what_cannot_work_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    for env, options, sentence in (
        (Count(), {"num_envs": 64}, r"num_envs=64 does not fit.*pass num_envs=1, or a function"),
        (Count, {"num_processes": 2}, r"trains in this process.*torchrun"),
        (Count, {"dry_run": True}, r"trains in this process"),
        (lambda: 3, {}, r"returned a int, and only a gymnasium.Env is legal"),
        ("TMaz", {}, r"env=TMaz is unknown; choose one of TMaze"),
        (None, {}, r"env= is missing"),
        ("TMaze", {"total_step": 3}, r"did you mean total_steps"),
        ("TMaze", {"total_steps": "many"}, r"total_steps=.many. must be an integer"),
        (SyncVectorEnv([Count], autoreset_mode=AutoresetMode.SAME_STEP), {}, r"NEXT_STEP"),
    ):
        with pytest.raises(ValueError, match=sentence):
            mtxl_rl.train(env, {**SIZES, **options}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.unchecked
def test_an_object_that_is_not_an_environment_is_named(tmp_path: Path) -> None:
    not_an_env: Any = 3
    with pytest.raises(ValueError, match=r"3 is a int; pass a task.s name, a gymnasium.Env"):
        mtxl_rl.train(not_an_env, SIZES, run_dir=tmp_path / "run")


@pytest.mark.training
def test_callbacks_see_episodes_iterations_and_checkpoints_and_stop_the_run(
    tmp_path: Path,
) -> None:
    recorder, other = Recorder(stop_at=64), mtxl_rl.Callback()
    result = mtxl_rl.train(
        Count, SIZES, num_envs=2, run_dir=tmp_path, callbacks=[recorder, other], verbose=False
    )
    # Rollouts of 16 steps: episodes of five steps and a reset row end in steps 5, 11 and 17.
    assert recorder.calls == [
        *[("episode", 5)] * 4, ("iteration", 32), ("checkpoint", ("step_000000000032.pt", 32)),
        *[("episode", 5)] * 6, ("iteration", 64), ("checkpoint", ("step_000000000064.pt", 64)),
    ]  # fmt: skip
    assert result.outcome == read_record(tmp_path)[-1]["outcome"] == "good enough"
    assert result.agent.step == 64


def test_an_object_that_is_not_a_callback_is_named(tmp_path: Path) -> None:
    class Misspelt(mtxl_rl.Callback):
        def on_iterations(self, metrics: Mapping[str, float | int]) -> None: ...

    for callback, sentence in (
        (Misspelt(), r"has on_iterations; a callback has one or more of on_iteration, on_episode"),
        (print, r"has no such method; a callback has"),
    ):
        with pytest.raises(ValueError, match=sentence):
            mtxl_rl.train("TMaze", TINY, run_dir=tmp_path / "run", callbacks=[callback])


def test_an_exception_of_a_callback_ends_the_run_with_its_own_type(tmp_path: Path) -> None:
    class Broken(mtxl_rl.Callback):
        def on_iteration(self, metrics: Mapping[str, float | int]) -> None:
            raise KeyError(f"missing in {sorted(metrics)}")

    with pytest.raises(KeyError, match="missing"):
        mtxl_rl.train("TMaze", TINY, run_dir=tmp_path, callbacks=Broken(), verbose=False)


def test_ctrl_c_saves_and_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = Run.iterate

    def interrupted(self: Run) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return iterate(self)

    monkeypatch.setattr(Run, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="resume="):
        mtxl_rl.train("TMaze", TINY, run_dir=tmp_path, verbose=False)
    assert checkpoint.load(tmp_path)["step"] == 64


def test_a_thread_trains(tmp_path: Path) -> None:
    results = list[mtxl_rl.TrainedRun]()

    def target() -> None:
        results.append(mtxl_rl.train("TMaze", TINY, total_steps=64, run_dir=tmp_path))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert results[0].metrics["step"] == 64


def test_quiet_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    mtxl_rl.train("TMaze", TINY, total_steps=64, run_dir=tmp_path, verbose=False)
    assert capfd.readouterr().out == ""
    assert np.isfinite(read_rows(tmp_path)[-1]["losses/policy_loss"])


def test_a_run_starts_from_the_weights_of_an_agent_of_another_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SIZES, "num_envs": 4, "ppo.num_minibatches": 2}
    mtxl_rl.train("EndlessTMaze", options, total_steps=64, run_dir=tmp_path / "first")
    second = {**options, "initial_weights": str(tmp_path / "first"), "ppo.learning_rate": 1e-9}
    mtxl_rl.train("TMaze", second, total_steps=64, run_dir=tmp_path / "second")
    # The observations are alike; the first task has three actions, the second one two.
    message = "gives all weights but those of action_head.output, previous_action"
    assert message in capsys.readouterr().out
    before, after = (
        checkpoint.load(tmp_path / name)["agent"]["policy"] for name in ("first", "second")
    )
    for name, weight in after.items():
        if name.startswith(("torso", "encoder")):
            torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6, msg=name)
    # A resumed run continues its own weights, and does not need the first agent.
    shutil.rmtree(tmp_path / "first")
    mtxl_rl.train(resume=tmp_path / "second", total_steps=128)


@pytest.mark.parametrize(
    ("name", "width", "error"),
    [
        ("{}/nothing", 16, r"nothing does not exist"),
        ("{}/run", 32, r"the torso of .*step_0+64.pt has other weights; set torso.width=16$"),
    ],
)
def test_initial_weights_of_no_agent_or_another_torso_are_refused(
    tmp_path: Path, name: str, width: int, error: str
) -> None:
    mtxl_rl.train("TMaze", TINY, total_steps=64, run_dir=tmp_path / "run")
    options = {**TINY, "torso.width": width, "initial_weights": name.format(tmp_path)}
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        mtxl_rl.train("TMaze", options, total_steps=64, run_dir=tmp_path / "other")
