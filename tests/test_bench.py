"""The benchmarks run; what they measure is not judged here."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_one_command_measures_all_and_writes_one_file(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "tests/bench/gpu.sh", "--quick"],
        cwd=ROOT, env=os.environ | {"PYTHON": sys.executable, "RESULTS": str(tmp_path)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    (file,) = tmp_path.iterdir()
    written = file.read_text()
    assert done.returncode == 0, written
    assert str(file) in done.stdout
    for expected in ("matrix product", "learner samples/s", "steps behind", "long-term memory"):
        assert expected in written
    assert "failed" not in written


def run_program(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a benchmark in this process, which has imported torch already; return its exit code."""
    path = ROOT / "tests/bench" / name
    monkeypatch.setattr(sys, "argv", [str(path), *argv])
    monkeypatch.syspath_prepend(path.parent)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        torch.set_num_threads(threads)
    return 0


@pytest.mark.training
def test_systems_start_spread_over_their_episodes_as_a_run_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Episodes of 101 steps, rollouts of 64.
    small = "--width 32 --layers 1 --window 16 --segment 16 --steps 64 --envs 4 --iterations 1"
    argv = ["--tasks", "TMaze", "--systems", "mlp", *small.split()]
    assert run_program("train.py", argv, monkeypatch) == 0
    output = capsys.readouterr().out
    assert output.startswith("101 random steps in each of 4 environments")
    assert "| mlp |" in output


@pytest.mark.training
def test_peers_take_turns_and_a_missing_one_is_listed_with_its_reason(tmp_path: Path) -> None:
    small = "--width 32 --layers 1 --window 8 --segment 8 --steps 16 --envs 4 --seconds 0.01"
    done = subprocess.run(
        [sys.executable, "tests/bench/peers.py", "--tasks", "TMaze,network", "--turns", "1",
         "--systems", "mtxl,cleanrl,lstm-network", "--threads", "1", "--logs", str(tmp_path),
         *small.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = {row[0].removeprefix("| "): row[1:] for row in rows}
    assert "mtxl_rl" in cells["mtxl"][0]
    assert all(float(cell.strip(" |").replace(",", "")) > 0 for cell in cells["mtxl"][1:])
    assert "--cleanrl-file" in cells["cleanrl"][0]
    assert not cells["lstm-network"][2].strip()  # It has no environments.
    assert float(cells["lstm-network"][3].replace(",", "")) > 0


@pytest.mark.training
@pytest.mark.parametrize(
    ("until", "limit", "expected"), [("0.2", "600", ""), ("2", "1", "not in ")]
)
def test_a_system_trains_until_its_score_or_the_limit(
    until: str, limit: str, expected: str
) -> None:
    small = "--width 32 --layers 1 --window 8 --segment 8 --steps 32 --envs 32"
    done = subprocess.run(
        [sys.executable, "tests/bench/peers.py", "--tasks", "TMaze", "--systems", "lstm",
         "--threads", "1", "--until", until, "--limit", limit, *small.split()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| lstm")]
    _, _, _, _, steps, seconds, highest, _ = (cell.strip() for cell in row.split("|"))
    assert steps.startswith(expected)
    assert seconds.startswith(expected)
    assert int(steps.removeprefix("not in ").replace(",", "")) >= 32 * 32
    assert (float(highest) < float(until)) == bool(expected)


@pytest.mark.training
def test_the_estimate_of_communication_is_that_of_the_docs() -> None:
    done = subprocess.run(
        [sys.executable, "tests/bench/communication.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_part_that_fails_is_reported_and_the_rest_continues(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        f'#!/bin/sh\ncase "$1" in *train.py) exit 3;; esac\n"{sys.executable}" "$@"\n'
    )
    broken.chmod(0o755)
    done = subprocess.run(
        ["bash", "tests/bench/gpu.sh", "--quick"],
        cwd=ROOT, env=os.environ | {"PYTHON": str(broken), "RESULTS": str(tmp_path / "results")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    (file,) = (tmp_path / "results").iterdir()
    assert done.returncode == 1
    assert "failed with exit code 3" in file.read_text()
    assert "steps behind" in file.read_text()


@pytest.mark.parametrize(
    ("program", "argv", "code", "message"),
    [
        *((path.name, ["--help"], 0, "") for path in sorted((ROOT / "tests/bench").glob("*.py"))
          if path.name != "recurrent_ppo.py"),
        ("tasks.py", ["few"], 2, "few"),
        ("peers.py", ["--systems", "mtxl,sb4"], 2, "--systems sb4 is unknown; choose from mtxl"),
        ("peers.py", ["--python", "rlib=/bin/python"], 2, "write MODULE=PATH"),
    ],
)  # fmt: skip
def test_mistakes_are_explained_and_help_is_given(
    program: str,
    argv: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_program(program, argv, monkeypatch) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert code or len(captured.out) > 100
