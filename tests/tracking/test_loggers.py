"""Loggers: what reaches TensorBoard, Weights & Biases and Trackio; missing packages are named."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mtxl_rl
from mtxl_rl.compose import compose_config
from mtxl_rl.tracking.metrics import MetricsLogger, read_rows

TINY = {
    "env.corridor_length": 9, "num_envs": 4, "model": "tiny", "device": "cpu", "torso.width": 16,
    "torso.num_heads": 2, "torso.window_length": 4, "torso.segment_length": 4,
    "ppo.rollout_length": 16, "ppo.bptt_segments": 2, "ppo.num_epochs": 1,
    "ppo.num_minibatches": 2, "total_steps": 64,
}  # fmt: skip


class Fake(ModuleType):
    """A module with the calls of wandb and trackio, which records them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> None:  # noqa: ANN401, D102
        self.calls.append(("init", arguments))

    def log(self, metrics: dict[str, Any], *, step: int) -> None:  # noqa: D102
        self.calls.append((f"log {step}", metrics))

    def finish(self) -> None:  # noqa: D102
        self.calls.append(("finish", None))

    def Image(self, path: str) -> str:  # noqa: N802, D102
        return f"image {Path(path).name}"

    def Video(self, path: str, *, format: str) -> str:  # noqa: A002, N802, D102
        return f"{format} {Path(path).name}"


@pytest.fixture(params=["wandb", "trackio"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


@pytest.mark.training
def test_a_run_logs_to_several_loggers(tmp_path: Path, fake: Fake) -> None:
    loggers = ["tensorboard", fake.__name__]
    mtxl_rl.train("TMaze", TINY, logger=loggers, run_dir=tmp_path, verbose=False)
    mtxl_rl.train(resume=tmp_path, total_steps=128, verbose=False)
    (first, logged, finish), (again, *_) = fake.calls[:3], fake.calls[3:]
    assert [first[0], logged[0], finish[0]] == ["init", "log 64", "finish"]
    assert first[1]["config"]["ppo.gamma"] == 0.99
    assert first[1]["name"] == str(tmp_path)
    assert first[1]["resume"] == "allow"
    assert {**first[1], "config": None} == {**again[1], "config": None}  # The same page.
    row = {key: value for key, value in read_rows(tmp_path)[0].items() if key != "step"}
    assert logged[1] == row
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "charts/episodic_return" in events.Tags()["scalars"]


def test_pictures_and_histograms_are_passed_on(tmp_path: Path, fake: Fake) -> None:
    fake.Histogram = lambda values: ("histogram", len(values))
    pictures = {"video": tmp_path / "a.gif", "timeline": tmp_path / "b.png"}
    with MetricsLogger(tmp_path, loggers=[fake.__name__]) as logger:
        logger.log_media(histograms={"gates": np.arange(3)}, pictures=pictures, step=7)
    assert fake.calls[1:-1] == [
        ("log 7", {"gates": ("histogram", 3)}),
        ("log 7", {"video": "gif a.gif"}),
        ("log 7", {"timeline": "image b.png"}),
    ]


def test_tensorboard_shows_the_options_as_text_and_hparams(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, options={"ppo.gamma": 0.9, "torso.layers": [1]}) as logger:
        logger.log({"charts/episodic_return": 1.0}, step=10)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    text = events.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|ppo.gamma|0.9|" in text
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams"
    assert b"torso.layers" in plugin.content


def test_no_logger_leaves_the_metrics_file_alone(tmp_path: Path) -> None:
    mtxl_rl.train("TMaze", TINY, logger="none", run_dir=tmp_path, verbose=False)
    assert len(read_rows(tmp_path)) == 1
    assert not list(tmp_path.glob("events*"))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # As if it were not installed.
    with pytest.raises(
        ImportError, match=rf"logger={name} needs .*pip install 'mtxl_rl\[{name}\]'"
    ):
        mtxl_rl.train("TMaze", TINY, logger=name, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["wandbb", "none,wandb", "[]"])
def test_an_illegal_logger_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"logger=.*must be none, or one or more of tensorboard"):
        compose_config(["env=TMaze", f"logger={value}"])
