"""Progress: what a terminal of any width shows, and what a log file gets."""

import io
import re

import pytest
from rich.console import Console

from mtxl_rl.tracking.progress import Progress

METRICS = {
    "episode/return": 0.512345,
    "episode/success": 0.25,
    "loss/policy": -1.23456e-05,
    "loss/value": 0.5,
    "ppo/entropy": 1.38629,
    "ppo/approx_kl": 0.0123,
    "ppo/ratio_deviation": 2e-7,
    "time/learn_seconds": 1.0,
}
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Seconds that pass when the test says so."""

    seconds = 0.0

    def __call__(self) -> float:  # noqa: D102
        return self.seconds


def terminal(width: int) -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=width, height=30, _environ={}), screen


def log_file() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=80, _environ={}), file


def drawn(progress: Progress, *, width: int) -> list[str]:
    console, screen = terminal(width)
    console.print(progress)
    return ESCAPE.sub("", screen.getvalue()).splitlines()


def running(*, total_steps: int = 1_000_000, initial_step: int = 0) -> tuple[Progress, Clock]:
    clock = Clock()
    console, _ = log_file()
    return Progress(total_steps, console=console, initial_step=initial_step, clock=clock), clock


@pytest.mark.parametrize("width", [1, 10, 22, 40, 63, 64, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    progress, clock = running(total_steps=10_000_000_000)
    clock.seconds = 1e6
    progress.update(123_456_789, METRICS)
    lines = drawn(progress, width=width)
    assert lines
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_every_number_is_on_the_display(width: int) -> None:
    progress, clock = running()
    clock.seconds = 100.0
    progress.update(250_000, METRICS)
    text = re.sub(r" +", " ", "\n".join(drawn(progress, width=width)))
    for shown in (
        "250,000 / 1,000,000 steps 25%",
        "steps/s 2,500",
        "elapsed 0:01:40",
        "ETA 0:05:00",
        "return 0.512",
        "success 0.25",
        "policy loss -1.23e-05",
        "value loss 0.5",
        "entropy 1.39",
        "approx KL 0.0123",
        "ratio dev. 2e-07",
    ):
        assert shown in text
    assert "━" in text


def test_what_is_not_known_is_not_shown() -> None:
    progress, clock = running()
    clock.seconds = 1.0
    progress.update(10, {"loss/value": 0.5})
    text = "\n".join(drawn(progress, width=80))
    assert "value loss" in text
    assert "success" not in text
    assert "return" not in text


def test_before_the_first_update_there_is_no_speed() -> None:
    progress, _ = running()
    text = re.sub(r" +", " ", "\n".join(drawn(progress, width=80)))
    assert "steps/s -" in text
    assert "ETA -" in text


def test_a_resumed_run_counts_for_the_bar_and_not_for_the_speed() -> None:
    progress, clock = running(initial_step=900_000)
    clock.seconds = 10.0
    progress.update(901_000, {})
    text = re.sub(r" +", " ", "\n".join(drawn(progress, width=80)))
    assert "901,000 / 1,000,000 steps 90%" in text
    assert "steps/s 100 " in text
    assert "ETA 0:16:30" in text


def test_speed_is_that_of_the_last_half_minute() -> None:
    progress, clock = running()
    for second in range(1, 101):
        clock.seconds = float(second)
        progress.update(second if second < 50 else 50 + 1000 * (second - 50), {})
    assert re.search(r"steps/s +1,000 ", "\n".join(drawn(progress, width=80)))


def test_compiling_does_not_count_for_the_speed() -> None:
    clock = Clock()
    progress = Progress(1000, console=log_file()[0], compiles_first=True, clock=clock)
    clock.seconds = 90.0
    progress.update(100, METRICS)
    text = re.sub(r" +", " ", "\n".join(drawn(progress, width=80)))
    assert "steps/s -" in text
    assert "ETA -" in text
    clock.seconds = 92.0
    progress.update(200, METRICS)
    text = re.sub(r" +", " ", "\n".join(drawn(progress, width=80)))
    assert "steps/s 50 " in text
    assert "ETA 0:00:16" in text


def test_the_run_is_not_at_a_hundred_percent_before_its_end() -> None:
    progress, _ = running()
    progress.update(999_999, {})
    assert "99%" in drawn(progress, width=80)[0]
    progress.update(1_000_500, {})
    assert "100%" in drawn(progress, width=80)[0]


def test_a_log_file_gets_a_line_every_ten_seconds_and_the_last() -> None:
    console, file = log_file()
    clock = Clock()
    with Progress(1000, console=console, clock=clock) as progress:
        for second in range(1, 26):
            clock.seconds = float(second)
            progress.update(second * 10, METRICS)
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        "10/1,000",
        "110/1,000",
        "210/1,000",
        "250/1,000",
    ]
    assert lines[-1].startswith("step 250/1,000 (25%) | steps/s 10 | elapsed 0:00:25 | ETA 0:01:15")
    assert lines[-1].endswith("approx KL 0.0123 | ratio dev. 2e-07")
    assert "\x1b" not in file.getvalue()


def test_the_last_line_of_a_log_file_is_not_said_twice() -> None:
    console, file = log_file()
    with Progress(1000, console=console, clock=Clock()) as progress:
        progress.update(1000, METRICS)
    assert len(file.getvalue().splitlines()) == 1


def test_a_dumb_terminal_gets_lines() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "dumb"})
    with Progress(1000, console=console) as progress:
        progress.update(10, METRICS)
    assert HIDE not in screen.getvalue()
    assert "step 10/1,000" in screen.getvalue()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_the_cursor_comes_back_after_an_exception(failure: type[BaseException]) -> None:
    console, screen = terminal(80)
    with pytest.raises(failure), Progress(1000, console=console) as progress:  # noqa: PT012
        progress.update(10, METRICS)
        raise failure
    written = screen.getvalue()
    assert written.count(HIDE) == written.count(SHOW) == 1
    assert written.index(HIDE) < written.index(SHOW)


def test_what_is_printed_meanwhile_stands_above_the_display() -> None:
    console, screen = terminal(80)
    with Progress(1000, console=console) as progress:
        progress.update(10, METRICS)
        console.print("a message")
    text = ESCAPE.sub("", screen.getvalue())
    assert text.index("a message") < text.rindex("10 / 1,000 steps")


def test_redrawing_never_clears_the_whole_screen() -> None:
    console, screen = terminal(80)
    with Progress(1000, console=console) as progress:
        for step in range(20):
            progress.update(step, METRICS)
            console.print("message")
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x1b[H" not in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.0, "0:00:59"), (86_399.0, "23:59:59"), (90_060.0, "1d 1:01"), (1e10, "> 99 days")],
)
def test_durations_fit_their_column(seconds: float, shown: str) -> None:
    progress, clock = running()
    clock.seconds = seconds
    assert shown in "\n".join(drawn(progress, width=80))
    assert len(shown) <= 10
