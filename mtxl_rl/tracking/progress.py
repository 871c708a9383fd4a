"""How a run is going: a live display on a terminal, a line every ten seconds anywhere else.

Nothing is measured here but time; the numbers are those of `mtxl_rl.tracking.metrics`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

# What is shown, in this order, when the metrics hold it.
_SHOWN = {
    "return": "episode/return",
    "success": "episode/success",
    "policy loss": "loss/policy",
    "value loss": "loss/value",
    "entropy": "ppo/entropy",
    "approx KL": "ppo/approx_kl",
    "ratio dev.": "ppo/ratio_deviation",
}
_CELL = 22  # Columns for a label and its value: 11 + 1 + 10.
_GAP = 3
_ONE_LINE_BAR = 64  # From this width on, the bar stands beside the step count.
_RATE_SECONDS = 30.0


class _Mark(NamedTuple):
    seconds: float
    step: int


class Progress:
    """A context manager that shows how far a run is, how fast, and how well it learns.

    Speed and remaining time are those of the last half minute. Leaving it, also by an exception,
    gives the terminal its cursor back and leaves the last numbers on the screen.

    Args:
        total_steps: Where the run ends.
        console: Where to show it; what it knows of the terminal decides the form.
        initial_step: Where a resumed run starts; it counts for the bar and not for the speed.
        compiles_first: The first update comes after compiling, which is not counted in the speed.
        line_seconds: Seconds between lines where there is no terminal.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        console: Console,
        initial_step: int = 0,
        compiles_first: bool = False,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.step = initial_step
        self._metrics: Mapping[str, float | int] = {}
        self._console = console
        self._clock = clock
        self._begun = clock()
        self._marks = deque([_Mark(self._begun, initial_step)])
        self._starts_late = compiles_first
        self._line_seconds = line_seconds
        self._next_line = self._begun
        self._is_told = True
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        self._begun = self._next_line = self._clock()
        self._marks = deque([_Mark(self._begun, self.step)])
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif not self._is_told:
            self._tell()

    def update(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Show this step and these metrics from now on."""
        now = self._clock()
        self.step, self._metrics = step, dict(metrics)
        if self._starts_late:
            self._marks.clear()
            self._starts_late = False
        self._marks.append(_Mark(now, step))
        while len(self._marks) > 2 and now - self._marks[1].seconds >= _RATE_SECONDS:
            self._marks.popleft()
        self._is_told = False
        if self._live is None and now >= self._next_line:
            self._tell()
            self._next_line = now + self._line_seconds

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text | ProgressBar | Segment]:
        """Draw the display into the width there is."""
        width = options.max_width
        count = f"{self.step:,} / {self.total_steps:,} steps {self._percent()}"
        beside = width >= _ONE_LINE_BAR
        yield _line(count, end="  " if beside else "\n")
        bar_width = width - len(count) - 2 if beside else width
        yield ProgressBar(total=max(self.total_steps, 1), completed=self.step, width=bar_width)
        yield Segment.line()
        num_columns = max(1, (width + _GAP) // (_CELL + _GAP))
        cells = [f"{label:<11} {text:>10}" for label, text in self._cells().items()]
        for row in range(0, len(cells), num_columns):
            yield _line((" " * _GAP).join(cells[row : row + num_columns]))

    def _tell(self) -> None:
        """Print one line, however long."""
        cells = " | ".join(f"{label} {text}" for label, text in self._cells().items())
        line = f"step {self.step:,}/{self.total_steps:,} ({self._percent()}) | {cells}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._is_told = True

    def _cells(self) -> dict[str, str]:
        rate = self._steps_per_second()
        left = max(self.total_steps - self.step, 0)
        cells = {
            "steps/s": "-" if rate is None else f"{rate:,.0f}",
            "elapsed": _duration(self._clock() - self._begun),
            "ETA": "-" if not rate else _duration(left / rate),
        }
        return cells | dict(self._known())

    def _known(self) -> Iterator[tuple[str, str]]:
        metrics = self._metrics
        for label, name in _SHOWN.items():
            if name in metrics:
                yield label, f"{metrics[name]:.3g}"

    def _steps_per_second(self) -> float | None:
        first, last = self._marks[0], self._marks[-1]
        seconds = last.seconds - first.seconds
        return (last.step - first.step) / seconds if seconds > 0 else None

    def _percent(self) -> str:
        # Cut and not rounded: 100% means that the run is over.
        return f"{min(100 * self.step // max(self.total_steps, 1), 100)}%"


def _line(content: str, *, end: str = "\n") -> Text:
    return Text(content, no_wrap=True, overflow="crop", end=end)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds in at most 10 columns."""
    if seconds >= 100 * 24 * 3600:
        return "> 99 days"
    whole = timedelta(seconds=int(seconds))
    clock = str(timedelta(seconds=whole.seconds))
    return f"{whole.days}d {clock[:-3]}" if whole.days else clock
