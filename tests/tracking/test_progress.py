"""Progress: the display of a terminal, and the lines of a log file."""

import errno
import io
import re

import pytest
from rich.console import Console

from mtxl_rl.tracking.progress import Progress

METRICS = {
    "charts/episodic_return": 0.512345,
    "losses/policy_loss": -1.23456e-05,
    "losses/approx_kl": 0.0123,
    "time/learn_seconds": 1.0,
}
SHOW_CURSOR = "\x1b[?25h"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:  # noqa: D102
        return self.seconds


class ClosedTerminal(io.StringIO):
    """A terminal that fails every write."""

    def write(self, text: str) -> int:  # noqa: ARG002, D102
        raise OSError(errno.EIO, "Input/output error")


def terminal(screen: io.StringIO, *, width: int = 100, term: str = "xterm") -> Console:
    return Console(
        file=screen, force_terminal=True, width=width, height=30, _environ={"TERM": term}
    )


@pytest.mark.parametrize("width", [20, 60, 100])
def test_a_terminal_shows_a_bar_and_the_metrics(width: int) -> None:
    screen = io.StringIO()
    clock = Clock()
    with Progress(1_000_000, console=terminal(screen, width=width), clock=clock) as progress:
        for step in (100_000, 250_000):
            clock.seconds += 60.0
            progress.update(step, METRICS)
    text = ESCAPE.sub("", screen.getvalue())
    assert max(len(line.split("\r")[-1]) for line in text.splitlines()) <= width
    assert "return 0.512" in text
    if width == 100:
        for part in ("250,000/1,000,000 steps", "25%", "2,083 steps/s", "0:02:00", "ETA 0:06:00"):
            assert part in text
        assert "policy loss -1.23e-05 | approx KL 0.0123" in text


def test_the_cursor_is_shown_again_after_an_exception() -> None:
    screen = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(1000, console=terminal(screen)):
        raise KeyboardInterrupt
    assert screen.getvalue().endswith(SHOW_CURSOR)


def test_a_log_file_has_a_line_per_interval_and_the_last_update() -> None:
    file = io.StringIO()
    clock = Clock()
    with Progress(1000, console=Console(file=file, width=80), clock=clock) as progress:
        for second in range(1, 26):
            clock.seconds = float(second)
            progress.update(second * 10, METRICS)
    lines = file.getvalue().splitlines()
    steps = [line.split()[1] for line in lines]
    assert steps == ["10/1,000", "110/1,000", "210/1,000", "250/1,000"]
    assert lines[0].startswith(
        "step 10/1,000 (1%) | steps/s 10 | elapsed 0:00:01 | ETA 0:01:39 | return "
    )
    assert lines[-1] == (
        "step 250/1,000 (25%) | steps/s 10 | elapsed 0:00:25 | ETA 0:01:15 | return 0.512 | "
        "policy loss -1.23e-05 | approx KL 0.0123"
    )


def test_the_last_line_is_printed_once() -> None:
    file = io.StringIO()
    with Progress(1000, console=Console(file=file)) as progress:
        progress.update(1000, {})
    assert len(file.getvalue().splitlines()) == 1


def test_a_dumb_terminal_has_lines() -> None:
    screen = io.StringIO()
    with Progress(1000, console=terminal(screen, term="dumb")) as progress:
        progress.update(10, METRICS)
    assert "step 10/1,000" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


def test_the_speed_excludes_the_steps_before_a_resume_and_compiling() -> None:
    file = io.StringIO()
    clock = Clock()
    console = Console(file=file)
    with Progress(1000, console=console, initial_step=500, clock=clock) as progress:
        for seconds, step in ((20.0, 600), (110.0, 700), (122.0, 800)):
            clock.seconds = seconds
            progress.update(step, {}, is_typical=step != 700)  # The second update compiles.
    assert file.getvalue().splitlines() == [
        "step 600/1,000 (60%) | steps/s 5 | elapsed 0:00:20 | ETA 0:01:20",
        "step 700/1,000 (70%) | steps/s - | elapsed 0:01:50 | ETA -",
        "step 800/1,000 (80%) | steps/s 8 | elapsed 0:02:02 | ETA 0:00:24",
    ]


def test_the_speed_is_that_of_the_last_five_minutes_or_the_last_update() -> None:
    file = io.StringIO()
    clock = Clock()
    with Progress(10_000, console=Console(file=file), clock=clock) as progress:
        for seconds, step in ((100.0, 1000), (400.0, 3000), (1000.0, 9000)):
            clock.seconds = seconds
            progress.update(step, {})
    speeds = [re.findall(r"steps/s (\S+)", line) for line in file.getvalue().splitlines()]
    assert speeds == [["10"], ["7"], ["10"]]


# The thread that redraws the display fails, too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("is_closed_file", [True, False])
def test_a_closed_terminal_does_not_end_the_run(*, is_terminal: bool, is_closed_file: bool) -> None:
    screen = ClosedTerminal()
    if is_closed_file:
        screen.close()
    with Progress(1000, console=Console(file=screen, force_terminal=is_terminal)) as progress:
        progress.update(10, METRICS)


def test_a_run_reports_that_no_episode_has_ended() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(100, console=Console(file=log, width=200), clock=clock) as progress:
        progress.update(10, {"losses/policy_loss": 0.5})
        clock.seconds += 60
        progress.update(20, {"losses/policy_loss": 0.5, "charts/episodic_return": 0.25})
    first, second = log.getvalue().splitlines()
    assert "no episode has ended | policy loss 0.5" in first
    assert "ended" not in second
    assert "return 0.25" in second
