"""Evaluating on the command line: what is evaluated, progress, and pictures that fail."""

import sys
from pathlib import Path

import pytest

from mtxl_rl import evaluate
from mtxl_rl.compose import compose_config
from mtxl_rl.evaluation import ablations
from mtxl_rl.training import trainer

TINY = [
    "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "ppo.rollout_length=16",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2", "device=cpu",
    "torso.width=16", "torso.num_heads=2", "ppo.num_epochs=1", "ppo.num_minibatches=2",
    "total_steps=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    trainer.run_until_signal(compose_config([*TINY, f"run_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "gru"
    trainer.run_until_signal(compose_config([*TINY, "torso=gru", f"run_dir={folder}"]))
    return folder


@pytest.mark.training
def test_the_evaluated_checkpoint_is_named_and_progress_is_shown(
    finished: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluate.main([f"checkpoint={finished}", "episodes=5", "num_envs=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{finished / 'checkpoints' / 'step_000000000064.pt'}: step 64"
    assert lines[1].startswith("episode 0/15 (0%) | ")
    assert any(line.startswith("episode 15/15 (100%) | ") for line in lines)
    evaluate.main([f"checkpoint={finished / 'policy.safetensors'}", "episodes=1", "memory=on"])
    assert capsys.readouterr().out.startswith(f"{finished / 'policy.safetensors'}: step 64\n")


def test_a_picture_that_does_not_exist_is_left_out(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("imageio")
    pictures = [f"video={tmp_path / 'a.gif'}", f"timeline={tmp_path / 'a.png'}", "video_steps=3"]
    evaluate.main([f"checkpoint={baseline}", "episodes=1", "num_envs=1", "memory=on", *pictures])
    shown = capsys.readouterr().out
    assert "a.png is left out: a torso of kind gru has no attention" in shown
    assert "10.000" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.training
def test_a_picture_that_fails_loses_no_evaluation(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("imageio")

    def fail(*_: object) -> None:
        raise RuntimeError("no codec")

    monkeypatch.setattr(ablations, "write_video", fail)
    pictures = [f"video={tmp_path / 'a.mp4'}", f"timeline={tmp_path / 'a.png'}", "video_steps=3"]
    evaluate.main([
        f"checkpoint={finished}", "episodes=1", "num_envs=1", f"output={tmp_path / 'a.json'}",
        *pictures,
    ])  # fmt: skip
    assert "a.mp4 was not drawn: RuntimeError: no codec" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


@pytest.mark.parametrize("option", ["video=a.gif", "timeline=a.png"])
def test_packages_are_checked_before_the_first_episode(
    finished: Path, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # As if it were not installed.
    with pytest.raises(SystemExit) as end:
        evaluate.main([f"checkpoint={finished}", option])
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "needs matplotlib: pip install 'mtxl_rl[video]'" in shown.err
