"""The memory timeline of a recording: what happened, memory writes and reads, and attention.

T recorded steps, M window length.
"""

from pathlib import Path
from typing import Any

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
_MIN_SHARE = 0.1  # Of a readout; below it, no single write is what the read returns.
_MAX_COMPONENTS = 16  # Of an observation that the timeline shows.


def write_timeline(recording: Recording, path: Path) -> None:
    """Plot what happened, memory writes and reads, and attention over the recorded steps.

    Arcs lead from a write of the delta memory to the reads that return most of it.

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
    figure = _draw_timeline(recording)
    with atomic_write(path, advice="free space there, or choose another timeline=") as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_timeline(recording: Recording) -> Any:  # noqa: ANN401
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    panels, records = memory_panels(recording), recording.diagnostics
    events = [draw_rewards, _draw_actions]
    if recording.image_key() is None:
        events.insert(0, _draw_observations)
    retrievals = [n for n, record in enumerate(records, 1) if has_retrievals(record)]
    heights = [
        *[1.2] * len(events),
        *(0.5 + 0.35 * len(panel.layers) for panel in panels),
        *[1.6] * len(retrievals),
        *[1.4] * len(records),
    ]
    size = (11.0, 1.1 * sum(heights) + 1)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes = axes[:, 0]
    rows = iter(axes)
    for draw_event in events:
        draw_event(next(rows), recording)
    for panel in panels:
        draw_panel(next(rows), panel)
    for n in retrievals:
        _draw_retrievals(next(rows), recording, n)
    for n, (axis, record) in enumerate(zip(rows, records, strict=True), 1):
        weights = mean_over_heads(record["attention/window"]).T  # [M + 1, T], oldest first
        window = len(weights) - 1
        norm = LogNorm(1e-3, 1, clip=True)
        draw_heatmap(axis, np.ma.masked_equal(weights, 0), norm=norm)
        axis.set_yticks([0, window], [f"{window} steps ago", "this step"])
        axis.set_title(f"Attention weight on the window, layer {n}, mean over heads", loc="left")
    for axis in axes:
        draw_episode_starts(axis, recording)
    axes[-1].set_xlabel("step")
    figure.suptitle(f"{recording.title}\ndashed lines: an episode starts")
    return figure


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
        f"Retrieved from, layer {layer}: an arc from the write (red) that a read returns most "
        "of; colour: its share; width: the read's effect",
        loc="left",
    )
    axis.figure.colorbar(lines, ax=axis, pad=0.01)
