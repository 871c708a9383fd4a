"""The memory timeline of a recording: what happened, memory writes and reads, and attention.

T recorded steps, M window length.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtxl_rl.evaluation.drawing import (
    CURSOR,
    draw_episode_starts,
    draw_heatmap,
    draw_panel,
    draw_rewards,
    mean_over_heads,
    memory_panels,
    require_drawing,
)
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.retrieval import has_retrievals, retrieval_shares
from mtxl_rl.tracking.files import atomic_write

PLOT_SUFFIXES = (".png", ".svg")
PANELS = ("observation", "reward", "action", "memory", "retrieved", "attention")
"""Kinds of panels, from top to bottom."""
_MIN_SHARE = 0.1  # Of a readout; below it, no single write is what the read returns.
_MAX_COMPONENTS = 16  # Of an observation that the timeline shows.


class _Row(NamedTuple):
    """One plot over the steps."""

    kind: str
    height: float
    draw: Callable[[Any], Any]
    """Draws into an axis."""


def write_timeline(recording: Recording, path: Path, panels: Sequence[str] = PANELS) -> None:
    """Plot what happened, memory writes and reads, and attention over the recorded steps.

    Arcs lead from a write of the delta memory to the reads that return most of it.

    Args:
        recording: What to plot.
        path: The picture.
        panels: Which of PANELS; those that the agent does not have are left out.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
        ValueError: The torso is a baseline; see `has_diagnostics`.
    """
    assert recording.policy is not None
    if not recording.has_diagnostics:
        kind = recording.policy.torso.config.kind
        raise ValueError(
            f"a timeline plots attention and long-term memory, which a torso of kind {kind} "
            "does not have; leave it out"
        )
    require_drawing("timeline")
    figure = _draw_timeline(recording, panels)
    with atomic_write(path, advice="free space there, or choose another timeline=") as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_timeline(recording: Recording, panels: Sequence[str] = PANELS) -> Any:  # noqa: ANN401
    from matplotlib.figure import Figure

    rows = [row for row in _rows(recording) if row.kind in panels]
    if not rows:
        raise ValueError(f"this agent has nothing to plot of timeline_panels={list(panels)}")
    heights = [row.height for row in rows]
    size = (11.0, 1.1 * sum(heights) + 1)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        row.draw(axis)
        axis.set_xlim(-0.5, len(recording.inputs) - 0.5)
        draw_episode_starts(axis, recording)
    axes[-1].set_xlabel("step")
    figure.suptitle(f"{recording.title}\ndashed lines: an episode starts")
    return figure


def _rows(recording: Recording) -> Iterator[_Row]:
    """All plots of a recording, from top to bottom."""
    if recording.image_key() is None:
        yield _Row("observation", 1.2, partial(_draw_observations, recording=recording))
    yield _Row("reward", 1.2, partial(draw_rewards, recording=recording))
    yield _Row("action", 1.2, partial(_draw_actions, recording=recording))
    for panel in memory_panels(recording):
        yield _Row("memory", 0.5 + 0.35 * len(panel.layers), partial(draw_panel, panel=panel))
    for n, record in enumerate(recording.diagnostics, 1):
        if has_retrievals(record):
            draw = partial(_draw_retrievals, recording=recording, layer=n)
            yield _Row("retrieved", 1.6, draw)
    for n, record in enumerate(recording.diagnostics, 1):
        weights = mean_over_heads(record["attention/window"]).T
        yield _Row("attention", 1.4, partial(_draw_attention, weights=weights, layer=n))


def _draw_attention(axis: Any, weights: Any, layer: int) -> None:  # noqa: ANN401
    """The window's weights [M + 1, T], oldest first."""
    from matplotlib.colors import LogNorm

    window, norm = len(weights) - 1, LogNorm(1e-3, 1, clip=True)
    draw_heatmap(axis, np.ma.masked_equal(weights, 0), norm=norm)
    axis.set_yticks([0, window], [f"{window} steps ago", "this step"])
    axis.set_title(f"Attention weight on the window, layer {layer}, mean over heads", loc="left")


def _draw_actions(axis: Any, recording: Recording) -> None:  # noqa: ANN401
    """The components of each step's action; the last step's is not known."""
    actions = torch.stack([step.previous_action.flatten() for step in recording.inputs[1:]])
    for component in actions.float().cpu().numpy().T:
        axis.plot(component, ".", markersize=3, color="tab:blue")
    axis.set_title("Action", loc="left")


def _draw_observations(axis: Any, recording: Recording) -> None:  # noqa: ANN401
    vectors = recording.vectors().T[:_MAX_COMPONENTS]
    draw_heatmap(axis, vectors)
    names = recording.component_names()[: len(vectors)]
    named = [index for index, name in enumerate(names) if name]
    axis.set_yticks(named, [names[index] for index in named])
    if not names:
        axis.set_ylabel("component")
    axis.set_title("Observation", loc="left")


def _draw_retrievals(axis: Any, recording: Recording, layer: int) -> None:  # noqa: ANN401
    """An arc from the write that each read returns most of, coloured by its share."""
    from matplotlib.collections import LineCollection

    assert recording.policy is not None
    is_first = torch.stack([step.is_first for step in recording.inputs])
    config = recording.policy.torso.config
    shares = retrieval_shares(
        recording.diagnostics[layer - 1], is_first, segment_length=config.segment_length
    )
    share, write = (field.cpu().numpy() for field in shares.max(dim=1))
    reads = np.flatnonzero(share >= _MIN_SHARE)
    angles = np.linspace(0, np.pi, 25)
    arcs = [
        np.stack(
            [
                (read + write[read]) / 2 + (read - write[read]) / 2 * np.cos(angles),
                (read - write[read]) * np.sin(angles),
            ],
            axis=1,
        )
        for read in reads
    ]
    moved = recording.diagnostics[layer - 1]["moved/read"][0].float().cpu().numpy()[reads]
    widths = 0.3 + 2.5 * moved / max([1e-9, *moved])
    lines = LineCollection(arcs, array=share[reads], cmap="viridis", linewidths=widths)
    lines.set_clim(0, 1)
    axis.add_collection(lines)
    axis.plot(write[reads], np.zeros(len(reads)), "v", color=CURSOR, markersize=4)
    axis.set_ylim(0, 1.05 * max([1, *(reads - write[reads])]))
    axis.set_ylabel("steps back")
    axis.set_title(
        f"Retrieved, layer {layer}: an arc from the write (red) that a read returns most of; "
        "colour: its share; width: the effect",
        loc="left",
    )
    axis.figure.colorbar(lines, ax=axis, pad=0.01)
