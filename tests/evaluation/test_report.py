"""The report of a suite: its tables, its figures, and its notes about missing runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mtxl_rl.evaluation.suite_runner import Suite, Task

pd = pytest.importorskip("pandas")
plots = pytest.importorskip("mtxl_rl.evaluation.plots")
report = pytest.importorskip("mtxl_rl.evaluation.report")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtxl_rl.evaluation.intervals.NUM_RESAMPLES", 20)


def new_suite(folder: Path, tasks: dict[str, Task], torsos: list[str], seeds: int) -> Suite:
    return Suite(
        name="tiny", tasks=tasks, torsos=torsos, seeds=seeds, episodes=8, jobs=1, folder=folder
    )


def suite(tmp_path: Path, *, seeds: int = 3, missing: tuple[str, int] = ("", 0)) -> Suite:
    """A suite of two tasks and two torsos, with the files of its runs; `missing` has none."""
    tasks = {
        "short": Task(options=["env=TMaze"], score="success", worst=0.5, transfer=["env.a=9"]),
        "long": Task(options=["env=TMaze"], score="return", worst=-1.0),
    }
    suite = new_suite(tmp_path, tasks, ["mtxl", "gru"], seeds)
    for run in suite.runs():
        if (run.torso, run.seed) == missing:
            continue
        run.folder.mkdir(parents=True)
        rows = [
            {
                "step": step,
                "charts/success": step / 400,
                "charts/episodic_return": None if step == 1 else 1,
            }
            for step in (1, 100, 200)
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        value = 1.0 if run.torso == "mtxl" else 0.5
        episodes = [{"success": value, "return": value, "length": 9.0}] * 8
        settings = ["on", "zero"] if run.torso == "mtxl" else ["on"]
        document = {"evidence": "of 9 steps", "episodes": dict.fromkeys(settings, episodes)}
        run.evaluation.write_text(json.dumps(document))
        if run.task == "short":
            transfer = document | {"episodes": {"on": episodes}}
            run.transfer(0).write_text(json.dumps(transfer))
    return suite


def test_the_tables_hold_every_score(tmp_path: Path) -> None:
    page = report.write_report(suite(tmp_path), command=["python", "-m", "it"]).read_text()
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert len(rows) == 3 * (2 * (2 + 1) + 2)  # seeds x (2 tasks x (mtxl's and gru's) + transfer)
    scores = {(row["task"], row["torso"]): row["normalised"] for row in rows}
    assert scores == {
        ("short", "mtxl"): "1.0000",
        ("short", "gru"): "0.0000",
        ("long", "mtxl"): "1.0000",
        ("long", "gru"): "0.7500",
    }
    for line in (
        "| task | measure | mtxl | gru |",
        "| short | success | 1.00 [1.00, 1.00] n=3 | 0.50 [0.50, 0.50] n=3 |",
        "| mtxl | 1.00 [1.00, 1.00] | - |",
        "| gru | 0.38 [0.38, 0.38] | 0.00 [0.00, 0.00] |",
        "| long | zero | 1.00 [1.00, 1.00] n=3 | - |",
        "| short | env.a=9 | 1.00 [1.00, 1.00] n=3 | 0.50 [0.50, 0.50] n=3 |",
        "- short, mtxl: of 9 steps",
        "`python -m it`; see provenance.json",
    ):
        assert line in page
    assert "Missing" not in page
    assert json.loads((tmp_path / "provenance.json").read_text())["seeds"] == [0, 1, 2]


def test_the_figures_are_written(tmp_path: Path) -> None:
    report.write_report(suite(tmp_path), command=[])
    for name in ("learning_curves", "scores", "profiles"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_a_performance_profile_needs_three_seeds(tmp_path: Path) -> None:
    report.write_report(suite(tmp_path, seeds=2), command=[])
    assert (tmp_path / "scores.png").exists()
    assert not (tmp_path / "profiles.png").exists()


def test_missing_runs_are_listed(tmp_path: Path) -> None:
    page = report.write_report(suite(tmp_path, missing=("gru", 1)), command=[]).read_text()
    assert "**Missing: short/gru/seed_1, long/gru/seed_1.**" in page
    assert "0.50 [0.50, 0.50] n=2" in page


def test_a_suite_without_any_finished_run_has_a_report(tmp_path: Path) -> None:
    page = report.write_report(
        suite(tmp_path, seeds=1, missing=("mtxl", 0)), command=[]
    ).read_text()
    assert "| short | success | - | 0.50 (no interval) n=1 |" in page
    empty = new_suite(tmp_path / "empty", {"a": Task(options=[])}, ["mtxl"], 1)
    assert "**Missing: a/mtxl/seed_0.**" in report.write_report(empty, command=[]).read_text()


def test_curves_average_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    tiny = suite(tmp_path, seeds=2)
    (tiny.runs()[-1].folder / "metrics.jsonl").write_text(
        '{"step": 100, "charts/episodic_return": 3}\n'
    )
    curves = pd.concat(
        plots.read_curve(run.folder, "charts/episodic_return").assign(task="long", label=run.torso)
        for run in tiny.runs()
        if run.task == "long"
    )
    figure = plots.draw_curves(curves, title="title", ylabels={"long": "return"})
    (axis,) = figure.axes
    mtxl, gru = axis.lines
    assert mtxl.get_xydata().tolist() == [[100, 1], [200, 1]]  # No return is known at step 1.
    assert gru.get_xydata().tolist() == [[100, 2]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("environment steps", "return")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mtxl", "gru"]


def test_bars_keep_the_order_of_tasks_and_torsos() -> None:
    rows = [("b", "y", 0.5, 0.4, 0.7), ("b", "x", 0.2, np.nan, np.nan), ("a", "x", 0.1, 0.0, 0.3)]
    columns = ["task", "torso", "estimate", "low", "high"]
    figure = plots.draw_scores(pd.DataFrame(rows, columns=columns), title="title")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["b", "a"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["y", "x"]
    heights = [bar.get_height() for bar in axis.patches]
    np.testing.assert_allclose(heights, [0.5, 0.0, 0.2, 0.1])


def test_a_metric_that_no_row_has_gives_an_empty_curve(tmp_path: Path) -> None:
    run = suite(tmp_path, seeds=1).runs()[0]
    assert plots.read_curve(run.folder, "nothing").empty
    assert np.allclose(plots.read_curve(run.folder, "charts/success")["value"], [0.0025, 0.25, 0.5])
