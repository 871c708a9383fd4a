"""Metrics: whole lines on disk after any failure, and increasing steps after a resume."""

import errno
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from mtxl_rl.tracking.metrics import EpisodeWindow, MetricsLogger, read_rows


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(run_dir))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_a_row_is_one_flat_json_object_with_the_step_first(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path / "new" / "run") as logger:
        logger.log({"losses/policy_loss": 0.5, "losses/epochs": 3}, step=10)
        logger.log({"losses/policy_loss": math.nan, "a": math.inf, "b": -math.inf}, step=20)
    text = (tmp_path / "new/run/metrics.jsonl").read_text()
    assert text == (
        '{"step": 10, "losses/policy_loss": 0.5, "losses/epochs": 3}\n'
        '{"step": 20, "losses/policy_loss": null, "a": null, "b": null}\n'
    )


def test_a_row_can_be_read_while_the_run_continues(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as logger:
        logger.log({"a": 1.0}, step=1)
        assert rows(tmp_path) == [{"step": 1, "a": 1.0}]


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as logger:
        logger.log({"charts/episodic_return": 0.25}, step=10)
        logger.log({"charts/episodic_return": 0.75}, step=20)
    assert scalars(tmp_path, "charts/episodic_return") == [(10, 0.25), (20, 0.75)]


def test_numpy_and_torch_scalars_are_numbers(tmp_path: Path) -> None:
    metrics: Any = {"a": np.float64(0.5), "b": torch.tensor(2.0).item()}
    with MetricsLogger(tmp_path) as logger:
        logger.log(metrics, step=1)
    assert rows(tmp_path) == [{"step": 1, "a": 0.5, "b": 2.0}]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("step", 1.0, 'a metric is named "step".*rename it'),
        ("loss/x", np.zeros(2), "'loss/x' is a ndarray, not a number; reduce it"),
        ("loss/x", None, "'loss/x' is a NoneType, not a number; reduce it"),
    ],
)
def test_an_illegal_metric_is_refused_and_writes_nothing(
    tmp_path: Path, name: str, value: object, sentence: str
) -> None:
    metrics: dict[str, Any] = {"loss/fine": 1.0, name: value}
    with MetricsLogger(tmp_path) as logger, pytest.raises(ValueError, match=sentence):
        logger.log(metrics, step=1)
    assert rows(tmp_path) == []


def test_a_resume_removes_the_later_rows(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as logger:
        for step in (10, 20, 30):
            logger.log({"a": float(step)}, step=step)
    with MetricsLogger(tmp_path) as logger:
        logger.truncate_after(10)
        assert rows(tmp_path) == [{"step": 10, "a": 10.0}]
        logger.log({"a": -20.0}, step=20)
    assert rows(tmp_path) == [{"step": 10, "a": 10.0}, {"step": 20, "a": -20.0}]
    assert scalars(tmp_path, "a") == [(10, 10.0), (20, -20.0)]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("second", [0, -3600])
def test_tensorboard_reads_files_in_the_order_of_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int
) -> None:
    start = int(time.time())
    for index in range(12):  # As many as change the number of digits of tensorboard's counter.
        monkeypatch.setattr(time, "time", lambda index=index: start + index * second)
        with MetricsLogger(tmp_path) as logger:
            logger.truncate_after(index)
            for step in (1, 2):
                logger.log({"a": float(index)}, step=index + step)
    assert scalars(tmp_path, "a") == [(step, step - 1.0) for step in range(1, 13)] + [(13, 11.0)]


def test_rows_can_be_removed_in_the_middle_of_a_run(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as logger:
        logger.log({"a": 1.0}, step=10)
        logger.log({"a": 2.0}, step=20)
        logger.truncate_after(10)
        logger.log({"a": 3.0}, step=20)
    assert rows(tmp_path) == [{"step": 10, "a": 1.0}, {"step": 20, "a": 3.0}]


def test_an_incomplete_last_line_is_dropped_when_the_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a')
    with MetricsLogger(tmp_path) as logger:
        logger.log({"a": 3.0}, step=3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 3]


def test_a_damaged_line_in_the_middle_is_dropped_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\0\n{"step": 2}\n{"step": 3}\n')
    with (
        MetricsLogger(tmp_path) as logger,
        pytest.warns(UserWarning, match="dropped an unreadable line of .*metrics.jsonl"),
    ):
        logger.truncate_after(2)
    assert rows(tmp_path) == [{"step": 1}, {"step": 2}]


def test_deeply_nested_rows_are_refused_or_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="holds a row that is not a JSON object"):
        read_rows(tmp_path)
    with MetricsLogger(tmp_path) as logger, pytest.warns(UserWarning, match="unreadable line"):
        logger.truncate_after(2)
    assert rows(tmp_path) == [{"step": 1}]


def test_metrics_that_are_no_file_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is not a file"), MetricsLogger(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete open files")
def test_metrics_that_are_deleted_during_the_run_are_one_sentence(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, loggers=()) as logger:
        logger.log({"a": 1.0}, step=1)
        logger.path.unlink()
        with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: it was deleted"):
            logger.log({"a": 2.0}, step=2)


class FullDisk(io.FileIO):
    """A file on a disk that has room for half a line."""

    is_full = False

    def write(self, line: Any) -> int:  # noqa: ANN401, D102
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.is_full = True
        return super().write(line[: len(line) // 2])


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path) as logger:
        logger.log({"a": 1.0}, step=1)
        logger._close_file()
        logger._file = FullDisk(logger.path, "ab")
        with pytest.raises(OSError, match="cannot write") as caught:
            logger.log({"a": 2.0}, step=2)
    assert caught.value.strerror == (
        f"cannot write {tmp_path / 'metrics.jsonl'}: No space left on device; earlier rows are "
        "kept; free space and resume, or choose another folder with run_dir="
    )
    assert rows(tmp_path) == read_rows(tmp_path) == [{"step": 1, "a": 1.0}]


def test_a_failure_of_tensorboard_is_one_sentence_and_keeps_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with MetricsLogger(tmp_path) as logger:
        (tensorboard,) = logger._open_loggers()
        monkeypatch.setattr(tensorboard, "log", fail)
        with pytest.raises(OSError, match=r"cannot write .*No space left"):
            logger.log({"a": 1.0}, step=1)
    assert rows(tmp_path) == [{"step": 1, "a": 1.0}]


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl.*run_dir="):
        MetricsLogger(tmp_path / "run").__enter__()


def test_importing_metrics_loads_neither_torch_nor_tensorboard(
    imported_packages: Callable[..., set[str]],
) -> None:
    packages = imported_packages("mtxl_rl.tracking.metrics")
    assert packages & {"torch", "tensorboard"} == set()


def test_the_window_means_over_the_last_episodes() -> None:
    window = EpisodeWindow(size=3)
    assert window.means() == {}
    for number in range(5):
        window.add(episode_return=float(number), episode_length=10 * number)
    assert len(window) == 3
    assert window.means() == {"charts/episodic_return": 3.0, "charts/episodic_length": 30.0}


def test_success_is_a_mean_over_the_episodes_that_define_it() -> None:
    window = EpisodeWindow()
    window.add(episode_return=0.0, episode_length=1, episode_success=1.0)
    window.add(episode_return=0.0, episode_length=1, episode_success=0.0)
    window.add(episode_return=0.0, episode_length=1)
    assert window.means()["charts/success"] == 0.5


def test_a_window_survives_a_resume(tmp_path: Path) -> None:
    window = EpisodeWindow(size=3)
    for number in range(5):
        window.add(episode_return=float(number), episode_length=1.0, episode_success=None)
    torch.save(window.state_dict(), tmp_path / "window.pt")
    resumed = EpisodeWindow(size=2)
    resumed.add(episode_return=100.0, episode_length=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "window.pt", weights_only=True))
    assert resumed.means() == {"charts/episodic_return": 3.5, "charts/episodic_length": 1.0}


def test_a_window_of_no_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        EpisodeWindow(size=0)
