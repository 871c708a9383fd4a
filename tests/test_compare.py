"""Comparing runs: seeds are aggregated, and only what differs is shown."""

import json
from pathlib import Path

import pytest

from mtxl_rl import compare
from mtxl_rl.command import choices
from mtxl_rl.compare import first_and_lowest, group_runs
from mtxl_rl.compose import compose_config, torso_preset
from mtxl_rl.config_files import save_config
from mtxl_rl.tracking.metrics import Row

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")


def make_run(folder: Path, *options: str, values: tuple[float, ...] = (0.0, 1.0)) -> Path:
    folder.mkdir(parents=True)
    save_config(compose_config(["env=TMaze", *options]), folder / "config.yaml")
    rows = [
        {"step": step, "charts/episodic_return": value, "charts/SPS": 100.0}
        for step, value in enumerate(values, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seeds_are_one_group_with_the_differing_options(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", "seed=1"),
        make_run(tmp_path / "b", "torso=gtrxl", "ppo.gamma=0.9"),
        make_run(tmp_path / "c", "seed=2"),
    ]
    seeds, other = group_runs(runs)
    assert (seeds.runs, other.runs) == ([runs[0], runs[2]], [runs[1]])
    assert seeds.options == {"ppo.gamma": "0.99"}
    assert (seeds.label, other.label) == ("mtxl ppo.gamma=0.99", "b")
    assert [torso_preset(group.config.torso) for group in (seeds, other)] == ["mtxl", "gtrxl"]


def test_the_table_has_means_over_seeds_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = [
        make_run(tmp_path / "a1", "seed=1", values=(0.0, 0.5)),
        make_run(tmp_path / "a2", "seed=2", values=(1.0, 0.7)),
        make_run(tmp_path / "b", "torso=gru"),
    ]
    compare.main([*map(str, runs), f"output={tmp_path / 'it'}"])
    shown = capsys.readouterr().out
    for cell in ("0.600 +- 0.196", "0.750 +- 0.490", "mtxl", "gru", *map(str, runs)):
        assert cell in shown
    assert "ppo." not in shown
    assert {"it.png", "it.svg"} <= {path.name for path in tmp_path.iterdir()}


def test_a_score_adds_when_each_run_reached_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = [
        make_run(tmp_path / "a1", "seed=1", values=(0.2, 0.98, 0.7, 0.9)),
        make_run(tmp_path / "a2", "seed=2", values=(0.1, 0.2, 0.3, 0.97)),
        make_run(tmp_path / "b", "torso=gru", values=(0.1, 0.2, 0.3, 1.0)),
    ]
    compare.main([*map(str, runs), f"output={tmp_path / 'it'}"])
    assert "first at" not in capsys.readouterr().out
    compare.main([*map(str, runs), f"output={tmp_path / 'it'}", "score=0.98"])
    lines = capsys.readouterr().out.splitlines()
    header = lines[2]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    columns = [cell.strip() for cell in header.split("┃")]
    first, lowest = columns.index("first at 0.98"), columns.index("lowest after")
    table = {row[1]: (row[first], row[lowest]) for row in cells if len(row) == len(columns)}
    assert [table[str(run)] for run in runs] == [("2", "0.700"), ("never", ""), ("4", "")]


def test_a_mean_of_fewer_than_100_episodes_reaches_no_score() -> None:
    rows: list[Row] = [
        {"step": 900, "charts/success": 1.0, "charts/episodic_length": 10.0},
        {"step": 950, "charts/success": None, "charts/episodic_length": 9.0},
        {"step": 1000, "charts/success": 0.99, "charts/episodic_length": 10.0},
        {"step": 1100, "charts/success": 0.97, "charts/episodic_length": 10.0},
    ]
    assert first_and_lowest(rows, "charts/success", score=0.98) == (1000, 0.97)
    assert first_and_lowest(rows, "charts/success", score=0.995) == (None, None)


@pytest.mark.parametrize("name", choices("torso"))
def test_a_torsos_preset_is_recognised(name: str) -> None:
    options = ["env=TMaze", f"torso={name}"]
    assert torso_preset(compose_config(options).torso) == name
