"""Suites: a tiny one from start to end, stopped and gone on with, and what its report says."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mtxl_rl import compare, evaluate
from mtxl_rl.config import choices, from_options
from mtxl_rl.evaluation.intervals import (
    interquartile_mean,
    performance_profiles,
    probability_of_improvement,
)
from mtxl_rl.evaluation.suite import Suite, SuiteConfig

pytest.importorskip("rliable")

YAML = """
torsos: [mtxl, gtrxl]
seeds: 2
tasks:
  short:
    options:
      - env=TMaze
      - env.corridor_length=5
      - num_envs=4
      - ppo.rollout_length=16
      - torso.window_length=4
      - torso.segment_length=4
      - ppo.bptt_segments=2
      - total_steps={total_steps}
      - device=cpu
    score: success
    worst: 0.5
    transfer: ["env.corridor_length=9 num_envs=4 episodes=4"]
"""


def arguments(tmp_path: Path, *, total_steps: int) -> list[str]:
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML.format(total_steps=total_steps))
    return [f"suite={path}", f"folder={tmp_path / 'results'}", "episodes=8", "jobs=2"]


def test_a_suite_trains_evaluates_and_reports_and_does_nothing_twice(tmp_path: Path) -> None:
    given = arguments(tmp_path, total_steps=128)
    evaluate.main(given)
    folder = tmp_path / "results"
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    # on, off and noise with a long-term memory, on without; and one transfer setting each.
    assert len(rows) == 2 * (3 + 1) + 2 * (1 + 1)
    for row in rows:
        assert float(row["normalised"]) == pytest.approx(2 * float(row["score"]) - 1, abs=1e-3)
    page = (folder / "report.md").read_text()
    assert "Missing" not in page
    assert "not evidence of long-term memory" in page  # the windows reach 2 x 4 steps back
    assert json.loads((folder / "provenance.json").read_text())["seeds"] == [0, 1]
    for name in ("learning_curves", "scores", "profiles"):
        assert (folder / f"{name}.png").stat().st_size > 5_000
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    runs = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    before = {path: path.stat().st_mtime_ns for path in runs}
    evaluate.main(given)
    assert {path: path.stat().st_mtime_ns for path in runs} == before


def test_a_stopped_suite_saves_its_runs_and_goes_on(tmp_path: Path) -> None:
    given = [*arguments(tmp_path, total_steps=100_000), "seeds=1", "torsos=[mtxl]"]
    command = [sys.executable, "-m", "mtxl_rl.evaluate", *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    run_dir = tmp_path / "results" / "short" / "mtxl" / "seed_0"
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "go on with" in said
    assert list((run_dir / "checkpoints").glob("step_*.pt"))
    one = Suite.load(
        SuiteConfig(suite=str(tmp_path / "tiny.yaml"), folder=str(tmp_path / "results"))
    )
    going_on = ["mtxl_rl.train", f"resume={run_dir}", "total_steps=100000"]
    assert one.runs()[0].next_command() == going_on


def test_more_steps_or_episodes_than_before_are_trained_and_evaluated(tmp_path: Path) -> None:
    given = [*arguments(tmp_path, total_steps=64), "seeds=1", "torsos=[gtrxl]"]
    run_dir = tmp_path / "results" / "short" / "gtrxl" / "seed_0"
    for total_steps, episodes in ((64, 8), (128, 8), (128, 16)):
        arguments(tmp_path, total_steps=total_steps)
        evaluate.main([*given, f"episodes={episodes}"])
    found = json.loads((run_dir / "evaluation.json").read_text())
    assert found["step"] == 128
    assert len(found["episodes"]["on"]) == 16


def test_a_failing_run_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [*arguments(tmp_path, total_steps=64), "seeds=1"]
    blocked = tmp_path / "results" / "short" / "mtxl" / "seed_0"
    blocked.mkdir(parents=True)
    (blocked / "checkpoints").write_text("in the way")
    with pytest.raises(SystemExit):
        evaluate.main(given)
    assert f"{blocked} failed" in capsys.readouterr().err
    assert "**Missing: short/mtxl/seed_0.**" in (tmp_path / "results" / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["suite=nowhere"], "choose one of"),
        (["suite=smoke", "torsos=[transformer]"], "choose from"),
        (["suite=smoke", "torsos=transformer"], "choose from"),
        (["suite=smoke", "seeds=-1"], "0 or more"),
        (["suite=smoke", "budget=3"], "is no option"),
    ],
)
def test_mistakes_are_one_sentence(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(given)
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("torsos: [mtxl]", "tasks"),
        ("tasks: {}", "tasks is empty"),
        ("tasks: {a: {score: success}}", "option tasks.a.options"),
        ("tasks: {a: {options: [env=TMaze], wurst: 1}}", "Key 'wurst' not in 'Task'"),
        ("tasks: {a: {options: [env=TMaz]}}\ntorsos: [mtxl]\nseeds: 1", "task a: env=TMaz is"),
        ("tasks: {a: {options: [env=TMaze]}}\ntorsos: [mtx]", "torsos has 'mtx'"),
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
        evaluate.main([f"suite={path}"])
    said = capsys.readouterr().err
    assert sentence in said
    assert str(path) in said
    assert said.count("\n") == 1


def test_one_torso_needs_no_brackets() -> None:
    config = from_options(SuiteConfig, ["suite=smoke", "torsos=gru"])
    assert Suite.load(config).torsos == ["gru"]


@pytest.mark.parametrize("name", choices("suite"))
def test_every_suite_is_legal(name: str) -> None:
    suite = Suite.load(SuiteConfig(suite=name))
    assert suite.tasks
    assert all(task.best > task.worst for task in suite.tasks.values())


def test_compare_prints_and_draws_any_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate.main([*arguments(tmp_path, total_steps=128), "seeds=1"])
    runs = [str(tmp_path / "results" / "short" / torso / "seed_0") for torso in ("mtxl", "gtrxl")]
    capsys.readouterr()
    compare.main([*runs, "metric=ppo/entropy", f"output={tmp_path / 'both'}"])
    shown = capsys.readouterr().out
    assert "ppo/entropy" in shown
    assert all(run in shown for run in runs), "a name is cut"
    assert (tmp_path / "both.png").exists()
    with pytest.raises(SystemExit):
        compare.main([*runs, "metric=nothing"])
    assert "its metrics are" in capsys.readouterr().err


def test_aggregates_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(1.0, 0.1, (8, 3)), rng.normal(0.2, 0.1, (8, 3))
    scores = {"better": better, "worse": worse}
    means = interquartile_mean(scores)
    middle = np.sort(better.ravel())[6:18]  # of 24 scores the middle half
    assert means["better"].estimate == pytest.approx(middle.mean())
    assert means["better"].low <= means["better"].estimate <= means["better"].high
    wins = (better[:, None] > worse[None]).mean()
    found = probability_of_improvement(scores, over="worse")
    assert found["better"].estimate == pytest.approx(wins)
    profile, ends = performance_profiles(scores, np.array([0.5]))["worse"]
    assert profile[0] == (worse > 0.5).mean()
    assert ends.shape == (2, 1)


def test_a_single_run_has_no_interval() -> None:
    scores = {"alone": np.array([[0.2, 0.4]]), "several": np.array([[0.2, 0.4], [0.6, 0.8]])}
    means = interquartile_mean(scores)
    assert str(means["alone"]) == "0.30 (no interval)"
    assert means["several"].low < means["several"].estimate < means["several"].high
    found = probability_of_improvement(scores, over="alone")
    assert str(found["several"]) == "0.75 (no interval)"
