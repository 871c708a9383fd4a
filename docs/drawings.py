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

from mtxl_rl.agents.returns import gae
from mtxl_rl.agents.rollout import random_minibatches
from mtxl_rl.torso import MemoryTransformer, TorsoConfig
from mtxl_rl.torso.clock import Clock
from mtxl_rl.torso.long_term.delta import delta_rule

IMAGES = Path(__file__).parent / "images"
NAMES = ("segments.svg", "acting.svg", "delta_rule.svg", "spans.svg", "episode_end.svg")
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


def both_paths(
    *, num_steps: int = 12, reset: int = 7
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """One number of a torso's outputs, step by step and by segments, and the segments' length."""
    config = TorsoConfig(
        width=8, num_heads=2, num_layers=2, window_length=4, segment_length=4, num_persistent=0
    )
    torch.manual_seed(0)
    torso = MemoryTransformer(config).double().eval()
    x = torch.randn(1, num_steps, config.width, dtype=torch.float64)
    is_first = torch.zeros(1, num_steps, dtype=torch.bool)
    is_first[:, [0, reset]] = True
    state = torso.initial_state(1)
    with torch.no_grad():
        learned = torso(x, state, is_first)[0]
    cache = torso.prefill(state, num_steps=num_steps)
    acted = [torso.decode_step(x[:, n], cache, is_first[:, n]) for n in range(num_steps)]
    return (
        torch.stack(acted, dim=1)[0, :, 0].numpy(),
        learned[0, :, 0].numpy(),
        config.segment_length,
    )


def draw_acting(path: Path, *, reset: int = 7) -> None:
    """Draw the two paths, their calls as boxes, and one output of each, computed by a torso."""
    acted, learned, length = both_paths(reset=reset)
    num_steps = len(acted)
    assert np.allclose(acted, learned, atol=1e-12)
    starts = [0, reset]
    segments = [
        (begin, min(begin + length, end))
        for start, end in zip(starts, [reset, num_steps], strict=True)
        for begin in range(start, end, length)
    ]
    with _figure(path, width=8.6, height=4.2) as figure:
        calls, outputs = figure.subplots(2, sharex=True, height_ratios=[1.15, 1])
        for n in range(num_steps):
            calls.add_patch(Rectangle((n + 0.08, 0.1), 0.84, 0.7, facecolor=_BLUES[0]))
            calls.text(n + 0.5, 0.45, str(n), ha="center", va="center")
            if n + 1 < num_steps and n + 1 != reset:
                arrow = {"arrowstyle": "->", "color": _BLUE, "shrinkA": 0, "shrinkB": 0}
                calls.annotate("", (n + 1.12, 0.45), (n + 0.88, 0.45), arrowprops=arrow)
        for begin, end in segments:
            size = end - begin
            calls.add_patch(Rectangle((begin + 0.08, 1.3), size - 0.16, 0.7, facecolor=_BLUES[1]))
            label = f"{begin} to {end - 1}" if size > 1 else str(begin)
            calls.text(begin + size / 2, 1.65, label, ha="center", va="center")
            if size == length:  # Complete: it is written.
                for low, high in ((0.1, 0.8), (1.3, 2.0)):
                    calls.plot([end, end], [low, high], color=_BLUE, linewidth=2.5)
                calls.text(end, 1.05, "write", ha="center", va="center", color=_BLUE, fontsize=7)
        calls.plot([reset, reset], [0, 2.1], color=_RED, linewidth=2.5)
        calls.text(reset, 2.25, "reset", ha="center", va="center", color=_RED, fontsize=7)
        calls.text(-0.2, 0.45, "acting:\none step after another", ha="right", va="center")
        calls.text(-0.2, 1.65, "learning:\na segment in parallel", ha="right", va="center")
        calls.set(xlim=(-2.9, num_steps + 0.1), ylim=(2.4, 0))
        calls.set_axis_off()
        steps = np.arange(num_steps) + 0.5
        circles = {"color": _BLUE, "markersize": 9, "fillstyle": "none"}
        outputs.plot(steps, learned, "o", label="forward", **circles)
        outputs.plot(steps, acted, "x", color=_RED, label="decode_step")
        outputs.legend(loc="center right", bbox_to_anchor=(0.17, 0.5), frameon=False)
        outputs.axvline(reset, color=_RED, linewidth=1, linestyle=":")
        outputs.set(yticks=[], xlabel="step; heights: the first number of each output")
        outputs.set_xticks(steps, [str(n) for n in range(num_steps)])
        outputs.spines[["left", "right", "top"]].set_visible(False)


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


def bootstrap_sources(*, is_truncated: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which values change which advantages [T, T], and the valid rows, of an episode that ends.

    The episode ends in step 2, row 3 is the reset row, and the next one starts in step 4.
    """
    num_steps, end = 7, 2
    terminated = torch.zeros(1, num_steps, dtype=torch.bool)
    terminated[0, end] = not is_truncated
    valid = torch.ones(1, num_steps, dtype=torch.bool)
    valid[0, end + 1] = False
    value = torch.zeros(1, num_steps, requires_grad=True)
    advantage = gae(
        torch.zeros(1, num_steps), terminated, valid, value, torch.zeros(1),
        gamma=0.9, gae_lambda=0.0,
    )  # fmt: skip
    rows = [torch.autograd.grad(row, value, retain_graph=True)[0][0] for row in advantage[0]]
    return (torch.stack(rows) > 0).numpy(), valid[0].numpy()


def draw_episode_end(path: Path) -> None:
    """Draw the rows around an episode's end, and the values that `gae` bootstraps from."""
    with _figure(path, width=7.4, height=3.4) as figure:
        for axis, is_truncated in zip(figure.subplots(2), (False, True), strict=True):
            sources, valid = bootstrap_sources(is_truncated=is_truncated)
            reset_row = int(np.flatnonzero(~valid)[0])
            for n, is_valid in enumerate(valid):
                color = _BLUES[int(n > reset_row)] if is_valid else "#dddddd"
                axis.add_patch(Rectangle((n + 0.04, 0), 0.92, 1, facecolor=color))
                text = "reset row:\nfinal\nobservation" if not is_valid else f"step {n}"
                text += "\nis_first" if n == reset_row + 1 else ""
                axis.text(n + 0.5, 0.5, text, ha="center", va="center", fontsize=8)
            for n, source in zip(*np.nonzero(sources), strict=True):
                bend = {"arrowstyle": "->", "color": _BLUE, "connectionstyle": "arc3,rad=0.35"}
                axis.annotate("", (n + 0.55, 1.04), (source + 0.45, 1.04), arrowprops=bend)
            axis.plot([reset_row, reset_row], [0, 1.15], color=_RED, linewidth=2.5)
            name = "truncated" if is_truncated else "terminated"
            axis.text(reset_row, -0.18, name, ha="center", va="center", color=_RED)
            axis.set(xlim=(0, len(valid)), ylim=(-0.35, 1.7))
            axis.set_axis_off()


def main(folder: Path = IMAGES) -> None:
    """Write the drawings."""
    draws = (draw_segments, draw_acting, draw_delta_rule, draw_spans, draw_episode_end)
    for name, draw in zip(NAMES, draws, strict=True):
        draw(folder / name)


if __name__ == "__main__":
    main()
