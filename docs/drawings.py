"""The drawings of how_it_works.md, computed by the code that they explain.

`python docs/drawings.py` writes them to docs/images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch.nn.functional import normalize

from mtxl_rl.agents.rollout import random_minibatches
from mtxl_rl.torso.clock import Clock
from mtxl_rl.torso.long_term.delta import delta_rule

IMAGES = Path(__file__).parent / "images"
NAMES = ("segments.svg", "delta_rule.svg", "spans.svg")
_BLUE, _RED, _ORANGE = "#4c78a8", "#d64541", "#f2b04c"
_BLUES = ("#c6dbef", "#9ecae1")
_MINIBATCHES = ("#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb")


@contextmanager
def _figure(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written as SVG, with the same bytes each time and text as text."""
    settings = {"svg.hashsalt": "mtxl_rl", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None})


def draw_segments(path: Path, *, segment_length: int = 4, window_length: int = 4) -> None:
    """Draw the segments and writes of two rows, which end where `Clock` counts them."""
    num_steps, starts = 20, ([0, 11], [0, 6])
    is_first = torch.zeros(len(starts), num_steps, dtype=torch.bool)
    for row, steps in enumerate(starts):
        is_first[row, steps] = True
    zeros = torch.zeros(len(starts), dtype=torch.long)
    clock = Clock.of(is_first, zeros, zeros, max_age=window_length, segment_length=segment_length)
    with _figure(path, width=8.6, height=2.7) as figure:
        axis = figure.subplots()
        for row in range(len(starts)):
            _draw_row(axis, row, clock, is_first=is_first[row].numpy())
        step = 9  # The step whose inputs are shown.
        age = int(clock.age[0, step])
        axis.add_patch(Rectangle((step - age, -0.62), age + 1, 0.24, color=_ORANGE))
        text = f"window of step {step}: its own input and the {age} before"
        axis.text(step + 1.2, -0.5, text, va="center")
        for row in range(len(starts)):
            axis.text(-0.3, row + 0.5, f"row {row}", ha="right", va="center")
        axis.set(xlim=(-2, num_steps + 0.2), ylim=(2.35, -0.75), yticks=[])
        axis.set_xticks(np.arange(num_steps) + 0.5, [str(n) for n in range(num_steps)])
        axis.set_xlabel("step; numbers: how many writes are in the memory that the step reads")
        axis.spines[["left", "right", "top"]].set_visible(False)


def _draw_row(axis: Axes, row: int, clock: Clock, *, is_first: NDArray[np.bool_]) -> None:
    """Draw a row's steps, whose segments start where the clock's `segment_step` is 0."""
    num_writes = 0
    for n, starts in enumerate(is_first):
        if starts:
            num_writes = 0
        elif clock.segment_step[row, n] == 0:  # The segment before has ended.
            num_writes += 1
        assert bool(clock.has_version[row, n]) == (num_writes > 0 or not is_first[: n + 1].any())
        color = _BLUES[num_writes % 2]
        axis.add_patch(Rectangle((n, row + 0.1), 1, 0.75, facecolor=color, edgecolor="white"))
        axis.text(n + 0.5, row + 0.47, str(num_writes), ha="center", va="center")
        if clock.segment_step[row, n + 1] == 0 and not is_first[n + 1 : n + 2].any():
            axis.plot([n + 1, n + 1], [row + 0.1, row + 0.85], color=_BLUE, linewidth=2.5)
            axis.text(n + 1, row + 1.0, "write", ha="center", va="center", color=_BLUE, fontsize=7)
        if starts and n:
            axis.plot([n, n], [row, row + 0.9], color=_RED, linewidth=2.5)
            axis.text(n, row + 1.0, "reset", ha="center", va="center", color=_RED, fontsize=7)


def read_errors(*, num_writes: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """The error of reading back 8 keys whose values change, after each write.

    A write gives a random one of the keys a new random value. The error is the mean squared
    distance to the current values, divided by their mean square.
    """
    generator = torch.Generator().manual_seed(seed)
    width, num_keys = 16, 8
    keys = normalize(torch.randn(num_keys, width, generator=generator, dtype=torch.float64))
    values = torch.zeros(num_keys, width, dtype=torch.float64)
    memories = {"delta rule": torch.zeros(width, width, dtype=torch.float64)}
    memories["sum (linear attention)"] = memories["delta rule"].clone()
    errors: dict[str, list[float]] = {name: [] for name in memories}
    for _ in range(num_writes):
        index = int(torch.randint(num_keys, (), generator=generator))
        values[index] = torch.randn(width, generator=generator, dtype=torch.float64)
        strength = torch.ones(1, dtype=torch.float64)
        keep, add = delta_rule(keys[index, None], values[index, None], strength, None)
        memories["delta rule"] = keep @ memories["delta rule"] + add
        memories["sum (linear attention)"] += torch.outer(keys[index], values[index])
        for name, memory in memories.items():
            error = ((keys @ memory - values) ** 2).mean() / (values**2).mean()
            errors[name].append(float(error))
    return {name: np.array(numbers) for name, numbers in errors.items()}


def draw_delta_rule(path: Path) -> None:
    """Draw the errors of `read_errors`, the median of 20 seeds."""
    runs = [read_errors(num_writes=100, seed=seed) for seed in range(20)]
    with _figure(path, width=6.2, height=2.7) as figure:
        axis = figure.subplots()
        for name, color in zip(runs[0], (_BLUE, _RED), strict=True):
            median = np.median([errors[name] for errors in runs], axis=0)
            axis.plot(np.arange(1, 101), median, color=color, label=name)
        axis.set(yscale="log", xlabel="writes to 8 keys", ylabel="relative error of reads")
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.legend()
        axis.grid(alpha=0.3)


def draw_spans(path: Path, *, num_envs: int = 6, num_spans: int = 4) -> None:
    """Draw a rollout's spans, coloured by the minibatch that `random_minibatches` gives them."""
    minibatches = random_minibatches(
        num_envs * num_spans, len(_MINIBATCHES), generator=torch.Generator().manual_seed(1)
    )
    with _figure(path, width=6.2, height=2.7) as figure:
        axis = figure.subplots()
        for color, spans in zip(_MINIBATCHES, minibatches.tolist(), strict=True):
            for index in spans:
                row, span = divmod(index, num_spans)
                axis.add_patch(Rectangle((span + 0.03, row + 0.12), 0.94, 0.76, facecolor=color))
                axis.plot(span + 0.06, row + 0.5, marker="o", color=_BLUE, markersize=6)
                arrow = {"arrowstyle": "->", "color": _RED}
                axis.annotate(
                    "", (span + 0.14, row + 0.5), (span + 0.92, row + 0.5), arrowprops=arrow
                )
        axis.set(xlim=(0, num_spans), ylim=(num_envs, 0), yticks=np.arange(num_envs) + 0.5)
        axis.set_yticklabels([f"row {row}" for row in range(num_envs)])
        axis.set_xticks(range(num_spans + 1), ["0", *(f"{n} L" for n in range(1, num_spans + 1))])
        axis.set_xlabel("step of the rollout; colours: minibatches of one epoch")
        axis.tick_params(left=False)
        axis.spines[["left", "right", "top"]].set_visible(False)


def main(folder: Path = IMAGES) -> None:
    """Write the drawings."""
    for name, draw in zip(NAMES, (draw_segments, draw_delta_rule, draw_spans), strict=True):
        draw(folder / name)


if __name__ == "__main__":
    main()
