"""The task and the long-term memory in CONTRIBUTING.md: their diffs apply, and both work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mtxl_rl.envs.tasks.catalog import TaskEntry
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv
from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.long_term import LONG_TERM
from mtxl_rl.tracking.metrics import read_rows

ROOT = Path(__file__).parents[1]
SECTIONS = ("Adding a task", "Adding a long-term memory")


def diff_of(section: str) -> str:
    """The diff of a section of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"## {section}\n")[1].split("```diff\n")[1].split("```")[0]


def new_module(section: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The Python module that a section's diff adds."""
    ((name, body),) = re.findall(
        r"--- /dev/null\n\+\+\+ b/\S*/(\w+)\.py\n@@ .*\n((?:\+.*\n)*)", diff_of(section)
    )
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # Dataclasses look their module up.
    exec(re.sub(r"^\+", "", body, flags=re.MULTILINE), module.__dict__)
    return module


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """A folder with a copy of the package to which the diffs were applied."""
    if shutil.which("git") is None:
        pytest.skip("git, which applies the diffs, is not installed")
    shutil.copytree(ROOT / "mtxl_rl", tmp_path / "mtxl_rl", ignore=lambda *_: ["__pycache__"])
    for section in SECTIONS:
        subprocess.run(
            ["git", "apply", "--unidiff-zero", "-"],
            cwd=tmp_path, input=diff_of(section), text=True, check=True,
        )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS)
def test_a_diff_is_short(section: str) -> None:
    assert len(diff_of(section).splitlines()) < 60


def test_the_diffs_apply_and_what_they_add_is_linted_and_formatted(patched: Path) -> None:
    ruff = str(Path(sys.executable).with_name("ruff"))
    shutil.copy(ROOT / "pyproject.toml", patched)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache"], cwd=patched, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.training
def test_an_agent_with_the_added_memory_trains_in_the_added_task(patched: Path) -> None:
    options = ["env=DelayedCopy", "torso=average", "env.delay=5", "total_steps=128", "num_envs=4",
               "ppo.rollout_length=16", "torso.width=16", "torso.num_heads=2", "device=cpu",
               "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2",
               "ppo.num_minibatches=2", "compile=false", "run_dir=run"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mtxl_rl.train", *options],
        cwd=patched, env=os.environ | {"PYTHONPATH": str(patched)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_rows(patched / "run")
    assert rows[-1]["step"] == 128
    assert np.isfinite(rows[-1]["losses/policy_loss"])
    config = (patched / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "long_term: average" in config
    assert "name: DelayedCopy" in config


def test_the_task_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    module = new_module("Adding a task", monkeypatch)
    entry = TaskEntry("DelayedCopy", module.DelayedCopyConfig, module.DelayedCopy)
    env = CheckedVectorEnv(entry.task_class(entry.config_class(delay=3), num_envs=4, seed=0))
    observation, _ = env.reset()
    for step in range(9):  # Two episodes and the reset row between them.
        if step in (0, 5):
            symbol = observation
        observation, reward, terminated, _, info = env.step(symbol)
        is_end = step in (3, 8)
        assert terminated.tolist() == [is_end] * 4
        assert reward.tolist() == [float(is_end)] * 4
        if is_end:
            assert info["success"].tolist() == [1.0] * 4
    assert set(np.unique(symbol)) <= {0, 1, 2, 3}
    env.close()


@pytest.mark.parametrize("read", ["parallel", "sequential"])
def test_the_memory_acts_as_it_learns(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = new_module("Adding a long-term memory", monkeypatch)
    monkeypatch.setitem(LONG_TERM, "average", module.AverageMemory)
    torch.manual_seed(0)
    config = TorsoConfig(width=8, num_heads=2, window_length=6, segment_length=4, read=read,
                         long_term="average")  # fmt: skip
    torso = build_torso(config).double()
    x, is_first = torch.randn(3, 30, 8).double(), torch.rand(3, 30) < 0.05
    y, state = torso(x, torso.initial_state(3), is_first)
    head, middle = torso(x[:, :13], torso.initial_state(3), is_first[:, :13])
    tail, again = torso(x[:, 13:], middle, is_first[:, 13:])
    torch.testing.assert_close(torch.cat([head, tail], 1), y)
    cache = torso.prefill(middle)
    steps = [torso.decode_step(x[:, t], cache, is_first[:, t]) for t in range(13, 30)]
    torch.testing.assert_close(torch.stack(steps, 1), tail)
    for after in (again, cache.state()):
        for actual, expected in zip(after, state, strict=True):
            torch.testing.assert_close(actual, expected)
    assert state.long_term.abs().max() > 0


def test_a_memory_without_a_decay_of_its_own_refuses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"torso\.long_term=average is unknown"):
        TorsoConfig(long_term="average")
    module = new_module("Adding a long-term memory", monkeypatch)
    monkeypatch.setitem(LONG_TERM, "average", module.AverageMemory)
    with pytest.raises(ValueError, match=r"torso\.decay=free is not .*; choose torso\.decay=none"):
        TorsoConfig(long_term="average", decay="free")
