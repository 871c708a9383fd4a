"""Progress of runs and evaluations: a live display in a terminal, else one line per interval."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

# Labels of the metrics to show, in this order.
_LABELS = {
    "charts/episodic_return": "return",
    "charts/success": "success",
    "charts/practice_return": "practice return",
    "losses/policy_loss": "policy loss",
    "losses/value_loss": "value loss",
    "losses/entropy": "entropy",
    "losses/approx_kl": "approx KL",
    "losses/ratio_deviation": "ratio dev.",
}
_COLUMNS = (
    TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.description}s"),
    BarColumn(bar_width=None),
    TextColumn("{task.percentage:.0f}%"),
    TextColumn("{task.fields[speed]} {task.description}s/s"),
    TimeElapsedColumn(),
    TextColumn("ETA {task.fields[eta]}"),
)
_SPEED_SECONDS = 300.0
_LINE_SECONDS = 10.0  # Between lines where there is no terminal.


class Progress:
    """A context manager that shows a run's step, speed and metrics.

    The speed is the mean over the last five minutes, and the time left (ETA) is that at this speed.
    Output errors, such as a closed terminal, end the display and not the run.

    Args:
        total: Step at which the run ends.
        console: Where to print.
        initial_step: Step at which a resumed run starts.
        clock: Returns the time in seconds.
        unit: What is counted, in the singular.
    """

    def __init__(
        self,
        total: int,
        *,
        console: Console,
        initial_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
    ) -> None:
        self._console = console
        self._clock = clock
        self._next_line = clock()
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._has_unprinted_update = False
        self._total = total
        self._samples = deque([(clock(), initial_step)])
        """Times and steps of the updates that the speed is measured from."""
        self._display = _Display(
            *_COLUMNS, console=console, disable=not self._is_live, get_time=clock
        )
        task_id = self._display.add_task(
            unit, total=total, completed=initial_step, speed="-", eta="-", metrics=""
        )
        self._task: Task = self._display.tasks[task_id]

    def __enter__(self) -> "Progress":
        with _ignored_output_errors():
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _ignored_output_errors():
            self._display.stop()
            if self._has_unprinted_update and not self._is_live:
                self._print_line()

    def update(
        self,
        step: int,
        metrics: Mapping[str, float | int] | None = None,
        *,
        is_typical: bool = True,
    ) -> None:
        """Show this step and these metrics.

        Args:
            step: Steps so far.
            metrics: Means of episodes, losses and so on.
            is_typical: False after time that does not come again, such as compiling: the speed is
                then measured anew.
        """
        metrics = metrics or {}
        speed, seconds_left = self._measure(step, is_typical=is_typical)
        text = " | ".join(
            f"{label} {metrics[name]:.3g}" for name, label in _LABELS.items() if name in metrics
        )
        if metrics and not {"charts/episodic_return", "charts/practice_return"} & set(metrics):
            text = f"no episode has ended | {text}"
        with _ignored_output_errors():
            self._display.update(
                self._task.id,
                completed=step,
                speed="-" if speed is None else f"{speed:,.0f}",
                eta=_duration(seconds_left),
                metrics=text,
            )
            self._has_unprinted_update = True
            if not self._is_live and self._clock() >= self._next_line:
                self._print_line()
                self._next_line = self._clock() + _LINE_SECONDS

    def _measure(self, step: int, *, is_typical: bool) -> tuple[float | None, float | None]:
        """Steps per second and seconds left; None: not known yet."""
        now = self._clock()
        if not is_typical:
            self._samples.clear()
        self._samples.append((now, step))
        while len(self._samples) > 2 and self._samples[0][0] < now - _SPEED_SECONDS:
            self._samples.popleft()
        begin, first_step = self._samples[0]
        if now <= begin or step <= first_step:
            return None, None
        speed = (step - first_step) / (now - begin)
        return speed, max(0, self._total - step) / speed

    def _print_line(self) -> None:
        task = self._task
        cells = [
            f"{task.description} {task.completed:,.0f}/{task.total:,.0f} ({task.percentage:.0f}%)",
            f"{task.description}s/s {task.fields['speed']}",
            f"elapsed {_duration(task.elapsed)}",
            f"ETA {task.fields['eta']}",
            task.fields["metrics"],
        ]
        line = " | ".join(cell for cell in cells if cell)
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._has_unprinted_update = False


class _Display(rich.progress.Progress):
    """A progress bar with the metrics below it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["metrics"])


@contextmanager
def _ignored_output_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SystemExit):
        # A closed terminal, a closed file, and what rich raises for a broken pipe.
        return


def _duration(seconds: float | int | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=int(seconds)))
