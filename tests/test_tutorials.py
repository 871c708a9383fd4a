"""The outputs that the tutorials show are those of their code."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/tutorials/evaluating_memory.md"
CELL = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
INTERVAL = re.compile(r"(\d+\.\d+) \+- (\d+\.\d+)")
MAX_COUNT_DIFFERENCE = 2
"""Successes of 16 episodes by which another machine's rounding may differ."""


def check_output(output: str, shown: str) -> None:
    """Check that an output has the form of the shown one, and means within its intervals."""
    assert NUMBER.sub("N", output) == NUMBER.sub("N", shown)
    intervals = zip(INTERVAL.findall(output), INTERVAL.findall(shown), strict=True)
    for (mean, _), (shown_mean, shown_half) in intervals:
        assert abs(float(mean) - float(shown_mean)) <= float(shown_half), (output, shown)
    counts, shown_counts = (
        list(map(int, NUMBER.findall(INTERVAL.sub("", text)))) for text in (output, shown)
    )
    for count, shown_count in zip(counts, shown_counts, strict=True):
        assert abs(count - shown_count) <= MAX_COUNT_DIFFERENCE, (output, shown)


def test_another_form_or_a_mean_outside_its_interval_is_refused() -> None:
    shown = "  on: 0.969 +- 0.043\n"
    check_output("  on: 0.930 +- 0.050\n", shown)
    for output in ("  on: 0.920 +- 0.050\n", "zero: 0.969 +- 0.043\n", "  on: 0.969\n"):
        with pytest.raises(AssertionError):
            check_output(output, shown)
    with pytest.raises(AssertionError):
        check_output("12 of 16\n", "15 of 16\n")


@pytest.mark.training
def test_the_shown_outputs_are_those_of_the_code(capsys: pytest.CaptureFixture) -> None:
    cells = CELL.findall(PAGE.read_text(encoding="utf-8"))
    assert sum(bool(shown) for _, shown in cells) > 1
    namespace: dict[str, object] = {}
    for code, shown in cells:
        exec(compile(code, str(PAGE), "exec"), namespace)
        output = capsys.readouterr().out
        if shown:
            check_output(output, shown)
