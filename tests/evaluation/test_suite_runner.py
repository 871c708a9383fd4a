"""Suites: a tiny one from start to end, stopped and continued, and its report."""

import csv
import json
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest

from mtxl_rl import compare, evaluate, suite
from mtxl_rl.command import choices
from mtxl_rl.evaluation import intervals, report
from mtxl_rl.evaluation import suite_runner as suite_module
from mtxl_rl.evaluation.intervals import (
    interquartile_mean,
    performance_profiles,
    probability_of_improvement,
)
from mtxl_rl.evaluation.suite_runner import Suite, SuiteConfig
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.run_record import read_record

YAML = """
torsos: [mtxl, gtrxl]
seeds: 2
tasks:
  short:
    options:
      - env=TMaze
      - env.corridor_length=5
      - num_envs=4
      - torso.width=16
      - torso.num_heads=2
      - ppo.rollout_length=16
      - torso.window_length=4
      - torso.segment_length=4
      - ppo.bptt_segments=2
      - total_steps={total_steps}
      - device=cpu
      - compile=false
    score: success
    worst: 0.5
    transfer: ["env.corridor_length=9 num_envs=4 episodes=4"]
"""


def arguments(tmp_path: Path, *, total_steps: int) -> list[str]:
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML.format(total_steps=total_steps))
    return [f"suite={path}", f"folder={tmp_path / 'results'}", "episodes=8", "jobs=2"]


class InProcess(Popen[bytes]):
    """In place of subprocess.Popen: the command runs in this process, which imports torch once."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.code = 0
        try:
            import_module(command[2]).main(command[3:])
        except SystemExit as stop:
            self.code = stop.code

    def poll(self) -> int:  # noqa: D102
        return self.code


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "Popen", InProcess)
    monkeypatch.setattr(suite_module, "sleep", lambda _: None)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 50)


@pytest.mark.usefixtures("in_process")
@pytest.mark.training
def test_a_suite_trains_evaluates_and_reports_and_does_nothing_twice(tmp_path: Path) -> None:
    argv = arguments(tmp_path, total_steps=64)
    suite.main(argv)
    folder = tmp_path / "results"
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    # on, zero and noise with a long-term memory, on without; and one transfer setting each.
    assert len(rows) == 2 * (3 + 1) + 2 * (1 + 1)
    for row in rows:
        assert float(row["normalised"]) == pytest.approx(2 * float(row["score"]) - 1, abs=1e-3)
    page = (folder / "report.md").read_text()
    assert "Missing" not in page
    assert "not evidence of long-term memory" in page  # the windows reach 2 x 4 steps back
    assert json.loads((folder / "provenance.json").read_text())["seeds"] == [0, 1]
    assert not (folder / "profiles.png").exists()  # It needs three seeds.
    for name in ("learning_curves", "scores"):
        assert (folder / f"{name}.png").stat().st_size > 5_000
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    runs = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    before = {path: path.stat().st_mtime_ns for path in runs}
    suite.main(argv)
    assert {path: path.stat().st_mtime_ns for path in runs} == before


@pytest.mark.training
def test_an_interrupted_suite_saves_its_runs_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = [*arguments(tmp_path, total_steps=100_000), "seeds=2", "torsos=mtxl", "jobs=1"]
    run_dir = tmp_path / "results" / "short" / "mtxl" / "seed_0"

    def interrupt(_: float) -> None:
        if (run_dir / "metrics.jsonl").exists() and not interrupts:
            interrupts.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)

    interrupts: list[int] = []
    monkeypatch.setattr(suite_module, "sleep", interrupt)
    with pytest.raises(SystemExit) as stop:
        suite.main(argv)
    assert stop.value.code == 130
    shown = capsys.readouterr().out
    assert "unfinished runs: 1 stopped and saved, 1 not started" in shown
    assert "continue with: python -m mtxl_rl.suite" in shown
    assert list((run_dir / "checkpoints").glob("step_*.pt"))
    path, folder = str(tmp_path / "tiny.yaml"), str(tmp_path / "results")
    loaded = Suite.load(SuiteConfig(suite=path, folder=folder))
    resuming = ["mtxl_rl.train", f"resume={run_dir}", "total_steps=100000"]
    assert loaded.runs()[0].next_command() == resuming


@pytest.mark.processes
def test_the_runs_of_a_suite_that_is_killed_save_and_stop(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    argv = [*arguments(tmp_path, total_steps=10_000_000), "torsos=mtxl", "jobs=1"]
    run_dir = tmp_path / "results" / "short" / "mtxl" / "seed_0"
    process = Popen([sys.executable, "-m", "mtxl_rl.suite", *argv])
    try:
        wait_until(lambda: checkpoint.latest(run_dir) is not None)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: bool(read_record(run_dir)[0]["end"]))
    assert read_record(run_dir)[0]["outcome"] == "stopped by SIGTERM"


@pytest.mark.usefixtures("in_process")
@pytest.mark.training
def test_more_steps_or_episodes_than_before_are_trained_and_evaluated(tmp_path: Path) -> None:
    argv = [*arguments(tmp_path, total_steps=64), "seeds=1", "torsos=[gtrxl]"]
    run_dir = tmp_path / "results" / "short" / "gtrxl" / "seed_0"
    for total_steps, episodes in ((64, 8), (128, 16)):
        arguments(tmp_path, total_steps=total_steps)
        suite.main([*argv, f"episodes={episodes}"])
    report = json.loads((run_dir / "evaluation.json").read_text())
    assert report["step"] == 128
    assert len(report["episodes"]["on"]) == 16


@pytest.mark.usefixtures("in_process")
@pytest.mark.training
def test_a_failing_run_is_reported_and_the_others_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [*arguments(tmp_path, total_steps=64), "seeds=1"]
    blocked = tmp_path / "results" / "short" / "mtxl" / "seed_0"
    blocked.mkdir(parents=True)
    (blocked / "checkpoints").write_text("in the way")
    with pytest.raises(SystemExit):
        suite.main(argv)
    assert f"{blocked} failed with code 1" in capsys.readouterr().err
    assert "**Missing: short/mtxl/seed_0.**" in (tmp_path / "results" / "report.md").read_text()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["suite=nowhere"], "choose one of"),
        (["suite=smoke", "torsos=[transformer]"], "torsos=transformer is unknown; choose one"),
        (["suite=smoke", "torsos=transformer"], ", as in torsos=mtxl,gtrxl"),
        (["suite=smoke", "seeds=-1"], "0 or more"),
        (["suite=smoke", "budget=3"], "option 'budget' is unknown; choose one of suite, torsos"),
        ([], "suite= is missing; choose one of"),
    ],
)
def test_mistakes_are_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        suite.main(argv)
    stderr = capsys.readouterr().err
    assert sentence in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("torsos: [mtxl]", "tasks"),
        ("tasks: {}", "tasks is empty"),
        ("tasks: {a: {score: success}}", "option tasks.a.options"),
        ("tasks: {a: {options: [env=TMaze], wurst: 1}}", "Key 'wurst' not in 'Task'"),
        ("tasks: {a: {options: [env=TMaz]}}\ntorsos: [mtxl]\nseeds: 1", "task a: env=TMaz is"),
        ("tasks: {a: {options: [env=TMaze]}}\ntorsos: [mtx]", "torsos=mtx is unknown"),
        ("tasks: {a: {options: [env=TMaze]}}", "has no torsos; add them, or give torsos="),
        ("- tasks", "Cannot merge"),
    ],
)
def test_a_file_that_is_no_suite_is_one_sentence(
    yaml: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml)
    with pytest.raises(SystemExit):
        suite.main([f"suite={path}"])
    stderr = capsys.readouterr().err
    assert sentence in stderr
    assert str(path) in stderr
    assert stderr.count("\n") == 1


def test_a_list_needs_no_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loaded = list[Suite]()
    monkeypatch.setattr(suite, "run_suite", lambda config: loaded.append(config) or [])
    monkeypatch.setattr(report, "write_report", lambda *_, **__: "")
    for torsos in ("gru", "gru,mtxl", "[gru,mtxl]"):
        suite.main(["suite=smoke", f"torsos={torsos}", f"folder={tmp_path}", "seeds=2"])
    assert [config.torsos for config in loaded] == [["gru"], ["gru", "mtxl"], ["gru", "mtxl"]]
    text = capsys.readouterr().out
    assert "1 tasks x 2 torsos x 2 seeds = 4 runs. Training 4 of them for 160,000 steps" in text


def test_evaluating_a_suite_names_the_command_that_trains(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["suite=smoke", "seeds=2"])
    assert "with python -m mtxl_rl.suite suite=smoke seeds=2" in capsys.readouterr().err


@pytest.mark.training
@pytest.mark.parametrize("name", choices("suite"))
def test_every_suite_is_legal(name: str) -> None:
    suite = Suite.load(SuiteConfig(suite=name))
    assert suite.tasks
    assert all(task.best > task.worst for task in suite.tasks.values())


@pytest.mark.usefixtures("in_process")
@pytest.mark.training
def test_compare_prints_and_draws_any_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    suite.main([*arguments(tmp_path, total_steps=64), "seeds=1"])
    runs = [str(tmp_path / "results" / "short" / torso / "seed_0") for torso in ("mtxl", "gtrxl")]
    capsys.readouterr()
    compare.main([*runs, "metric=losses/entropy", f"output={tmp_path / 'both'}"])
    shown = capsys.readouterr().out
    assert "losses/entropy" in shown
    assert all(run in shown for run in runs), "a name is cut"
    assert (tmp_path / "both.png").exists()
    with pytest.raises(SystemExit):
        compare.main([*runs, "metric=nothing"])
    assert "its metrics are" in capsys.readouterr().err


def test_aggregates_are_those_of_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 200)
    rng = np.random.default_rng(0)
    better, worse = rng.normal(1.0, 0.1, (8, 3)), rng.normal(0.2, 0.1, (8, 3))
    scores = {"better": better, "worse": worse}
    means = interquartile_mean(scores)
    middle = np.sort(better.ravel())[6:18]  # of 24 scores the middle half
    assert means["better"].estimate == pytest.approx(middle.mean())
    assert means["better"].low <= means["better"].estimate <= means["better"].high
    wins = (better[:, None] > worse[None]).mean()
    estimates = probability_of_improvement(scores, over="worse")
    assert estimates["better"].estimate == pytest.approx(wins)
    profile, ends = performance_profiles(scores, np.array([0.5]))["worse"]
    assert profile[0] == (worse > 0.5).mean()
    assert ends.shape == (2, 1)


def test_a_single_run_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 200)
    scores = {"alone": np.array([[0.2, 0.4]]), "several": np.array([[0.2, 0.4], [0.6, 0.8]])}
    means = interquartile_mean(scores)
    assert str(means["alone"]) == "0.30 (no interval)"
    assert means["several"].low < means["several"].estimate < means["several"].high
    estimates = probability_of_improvement(scores, over="alone")
    assert str(estimates["several"]) == "0.75 (no interval)"
