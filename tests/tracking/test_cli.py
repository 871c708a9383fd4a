"""Which errors of a command are one sentence, and which keep their traceback."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mtxl_rl.envs.registry import env_entry
from mtxl_rl.tracking.cli import make_writable, one_sentence_errors
from mtxl_rl.tracking.files import atomic_write


def test_the_librarys_error_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        env_entry("Nowhere")
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: env.name=Nowhere is unknown")
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
