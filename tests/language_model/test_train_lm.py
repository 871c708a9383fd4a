"""The character model's command: what it learns, and what can be wrong."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtxl_rl import MemoryTransformerXL
from mtxl_rl.language_model.causal_lm import CausalLM
from mtxl_rl.runtime.distributed import launch
from mtxl_rl.tracking.metrics import read_rows
from mtxl_rl.train_lm import TrainLMConfig, main

TINY = ["dim=16", "depth=1", "heads=2", "seq_len=8", "mem_len=8", "segments=2", "batch_size=4",
        "num_characters=4000", "gap=20", "device=cpu"]  # fmt: skip


@pytest.mark.training
def test_the_command_trains_logs_and_saves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    main([*TINY, "updates=40", "evaluate_every=10", f"run_dir={folder}"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    bits = [row["lm/bits_per_character"] for row in rows]
    assert bits[-1] < bits[0] - 0.3
    assert 0 <= rows[-1]["lm/answer_accuracy"] <= 1
    model = MemoryTransformerXL(
        num_tokens=256, dim=16, depth=1, heads=2, seq_len=8, mem_len=8, num_mem_kv=4,
        long_term="delta",
    )  # fmt: skip
    model.load_state_dict(load_file(folder / "model.safetensors"))


def test_a_start_that_failed_does_not_keep_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    argv = [*TINY, "updates=1", f"run_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as broken:
        broken.setattr(MemoryTransformerXL, "forward", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            main(argv)
    main(argv)
    with pytest.raises(SystemExit):
        main(argv)


@pytest.mark.parametrize("long_term", ["slots", "none"])
def test_any_text_and_any_memory_will_do(tmp_path: Path, long_term: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(Path(__file__).read_bytes())
    options = [f"text={text}", f"long_term={long_term}", "updates=2", f"run_dir={tmp_path / 'r'}"]
    sizes = [part for part in TINY if not part.startswith(("gap=", "num_characters="))]
    main([*sizes, *options])
    assert (tmp_path / "r" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["txt=a"], "option 'txt' is unknown; did you mean text?"),
        (["updates=0"], "1 or more"),
        (["updates=many"], "updates"),
        (["text=a.txt"], "error: gap=20 has no effect with text=a.txt; remove it"),
        (["text=/nowhere.txt", "gap=50", "num_characters=1000000"], "nowhere.txt"),
        (["num_characters=500"], "lower one of the three"),
        (["heads=3"], "heads=3 must divide dim=16; choose heads from [1, 2, 4, 8, 16]"),
        (["dim=0"], "error: dim=0 must be 1 or more"),
        (["seq_len=0"], "error: seq_len=0 must be 1 or more"),
        (["num_mem_kv=-1"], "error: num_mem_kv=-1 must be 0 or more"),
        (["learning_rate=0"], "learning_rate=0.0 must be finite and above 0"),
        (["learning_rate=nan"], "learning_rate=nan must be finite and above 0"),
        (["seed=-1"], "error: seed=-1 must be 0 or more"),
        (["long_term=lstm"], "error: long_term=lstm is unknown; choose one of"),
        (["device=tpu"], "choose auto"),
    ],
)
def test_mistakes_are_one_sentence(
    argv: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main([*TINY, *argv, f"run_dir={tmp_path / 'run'}"])
    stderr = capsys.readouterr().err
    assert sentence in stderr
    assert stderr.count("\n") == 1


@pytest.mark.training
def test_a_damaged_checkpoint_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main([*TINY, "updates=1", f"run_dir={tmp_path}"])
    path = tmp_path / "checkpoint.pt"
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    largest = max(state["model"].values(), key=torch.Tensor.numel)
    at = whole.index(largest.numpy().tobytes())
    flipped = bytearray(whole)
    flipped[at] ^= 1
    for content in (whole[:1000], b"not a checkpoint", bytes(flipped)):
        path.write_bytes(content)
        assert str(path) in error_of(capsys, [f"resume={tmp_path}", "updates=2"])
    for wrong in ({}, [], state | {"update": "x"}, state | {"model": None}):
        torch.save(wrong, path)
        error = error_of(capsys, [f"resume={tmp_path}", "updates=2"])
        assert f"{path} does not fit" in error


def error_of(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(argv)
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def test_an_interrupted_run_saves_its_weights_and_exits_with_the_signals_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CausalLM.forward

    def interrupted(self: CausalLM, *args: Any) -> Any:  # noqa: ANN401
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(CausalLM, "forward", forward)
        return forward(self, *args)

    monkeypatch.setattr(CausalLM, "forward", interrupted)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, f"run_dir={tmp_path / 'run'}"])
    assert stop.value.code == 143
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.training
def test_resuming_equals_not_stopping_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = [*TINY, "updates=8", "evaluate_every=4"]
    main([*options, f"run_dir={whole}"])
    forward, calls = CausalLM.forward, list[int]()

    def interrupted(self: CausalLM, *args: Any) -> Any:  # noqa: ANN401
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "forward", interrupted)
        with pytest.raises(SystemExit):
            main([*options, f"run_dir={halves}"])
    shown = capsys.readouterr().out
    assert (
        f"stopped after update 5/8; continue with: python -m mtxl_rl.train_lm resume={halves}"
        in (shown)
    )
    main([f"resume={halves}"])
    expected, resumed = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    for name, weight in expected.items():
        assert torch.equal(weight, resumed[name]), name
    assert [row["step"] for row in read_rows(halves)] == [4, 8]
    main([f"resume={halves}"])
    assert "nothing is left to train after update 8; give a larger updates=" in (
        capsys.readouterr().out
    )


def test_a_trained_model_continues_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    main([*TINY, "updates=2", f"run_dir={folder}"])
    before = (folder / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    main([f"resume={folder}", "prompt='a3;b7;'", "num_generated=12"])
    text = capsys.readouterr().out.splitlines()[-1]
    assert text.startswith("a3;b7;")
    assert (folder / "checkpoint.pt").read_bytes() == before
    for arguments, sentence in (
        ([f"resume={folder}", "dim=32"], "Cannot change dim when resuming"),
        ([f"resume={tmp_path / 'none'}"], "is not a run of mtxl_rl.train_lm"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert sentence in capsys.readouterr().err


@pytest.mark.processes
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    worker = str(Path(__file__).with_name("float64_worker.py"))
    options = [*TINY, "updates=6", "evaluate_every=3"]
    for size in (1, 2):
        arguments = [worker, *options, f"run_dir={tmp_path / str(size)}"]
        assert launch(arguments, num_processes=size) == 0
    expected, parallel = (load_file(tmp_path / size / "model.safetensors") for size in ("1", "2"))
    for name, weight in expected.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(parallel[name], weight, rtol=0, atol=1e-9, msg=name)
    for row, other in zip(read_rows(tmp_path / "1"), read_rows(tmp_path / "2"), strict=True):
        for name in ("lm/bits_per_character", "lm/answer_accuracy", "losses/train_loss"):
            assert other[name] == pytest.approx(row[name], rel=1e-6)


@pytest.mark.processes
def test_the_command_starts_its_processes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run_dir = tmp_path / "run"
    main([*TINY, "updates=2", "num_processes=2", f"run_dir={run_dir}"])
    assert capfd.readouterr().out.count("update 2/2 | ") == 1  # Process 0 alone prints.
    assert len(read_rows(run_dir)) == 1


def test_the_legal_numbers_of_processes_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_processes=3 .* batch_size=4; choose one of \[1, 2"):
        TrainLMConfig(batch_size=4, num_processes=3)
