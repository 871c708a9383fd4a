"""Errors of a command, and requests to stop a loop."""

import json
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mtxl_rl.envs.registry import env_entry
from mtxl_rl.tracking import cli
from mtxl_rl.tracking.cli import make_writable, one_sentence_errors, stop_requests
from mtxl_rl.tracking.files import atomic_write


def test_the_librarys_error_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        env_entry("No\nwhere")
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: env.name=No where is unknown")
    assert message.count("\n") == 1


def test_an_error_of_a_library_that_ours_calls_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), one_sentence_errors():
        make_writable(tmp_path)
    with pytest.raises(SystemExit), one_sentence_errors(), atomic_write(tmp_path / "a" / "b"):
        pass  # Nothing is written, so that the rename fails.


def test_the_callers_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="boom"), one_sentence_errors():
        raise ValueError("boom")
    with pytest.raises(json.JSONDecodeError), one_sentence_errors():
        json.loads("{")
    with pytest.raises(RuntimeError), one_sentence_errors():
        torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(ValueError, match="broadcast"), one_sentence_errors():
        np.zeros(2) + np.zeros(3)


def test_a_workers_traceback_stands_above_the_sentence(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        try:
            env_entry("Nowhere")
        except ValueError as error:
            error.add_note("Traceback (most recent call last):\n  in the worker\n")
            error.add_note("at step 3")
            raise

    with pytest.raises(SystemExit), one_sentence_errors():
        fail()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: env.name=Nowhere")
    assert lines[-1].endswith("; at step 3")


def test_an_interrupt_is_no_error() -> None:
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Codes with which the program would have ended."""
    codes = list[int]()
    monkeypatch.setattr(cli.os, "_exit", codes.append)
    return codes


def test_a_second_sigterm_lets_the_work_be_saved(exits: list[int]) -> None:
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop[0] == signal.SIGTERM
    assert exits == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),  # As torchrun sends them after two Ctrl-C.
    ],
)
def test_a_second_ctrl_c_ends_immediately(first: int, second: int, exits: list[int]) -> None:
    with stop_requests():
        signal.raise_signal(first)
        signal.raise_signal(second)
    assert exits == [128 + second]


def test_the_first_signal_is_announced_once(capfd: pytest.CaptureFixture) -> None:
    with stop_requests(collect_all=True) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stop == [signal.SIGINT] * 2
    assert capfd.readouterr().err.count("Stopping once the work is saved") == 1


def test_another_thread_has_the_requests_of_its_caller_alone() -> None:
    requests, handlers = [signal.SIGTERM.value], list[object]()

    def loop() -> None:
        with stop_requests(requests=requests) as stop:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert stop is requests

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requests():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
