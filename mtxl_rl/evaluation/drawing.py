"""Functions that the pictures of a recording share.

T recorded steps, N layers (counted from 1), H heads.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.tracking.cli import print_line

CURSOR = "tab:red"


def require_drawing(option: str) -> None:
    """Check that the packages of an option, `video`, `timeline` or `probe`, are installed.

    Raises:
        ImportError: one is not; the message names what to install.
    """
    for name in ("matplotlib", "imageio", "imageio_ffmpeg")[: 3 if option == "video" else 1]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"{option}= needs {name}: pip install 'mtxl_rl[video]'") from error


def try_write(write: Callable[[Path], None], path: Path) -> bool:
    """Write a picture to a path, and return whether that succeeded.

    A failure is reported, not raised: an evaluation is never lost to a picture.
    """
    try:
        write(path)
    except Exception as error:
        print_line(f"{path} was not drawn: {type(error).__name__}: {error}")
        return False
    return True


class Panel(NamedTuple):
    """A quantity per layer and step."""

    title: str
    maximum: float | None  # End of the colour scale; None: the largest value.
    layers: dict[int, Float[np.ndarray, " T"]]


def memory_panels(recording: Recording) -> list[Panel]:
    """Strength of memory writes and reads, of the layers that have a long-term memory."""
    write = Panel("Write strength, mean over heads", 1.0, {})
    read = Panel("Read, as a change relative to the stream", None, {})
    slots = Panel("Attention weight on memory slots, mean over heads", 1.0, {})
    for n, record in enumerate(recording.diagnostics, 1):
        if "memory/strength" in record:
            write.layers[n] = mean_over_heads(record["memory/strength"])
        if "moved/read" in record:
            read.layers[n] = record["moved/read"][0].float().cpu().numpy()
        if "attention/slots" in record:
            weights = record["attention/slots"]
            written = weights[..., : 2 * weights.shape[-1] // 3]  # Without the empty memory's.
            slots.layers[n] = mean_over_heads(written.sum(dim=-1))
    return [panel for panel in (write, read, slots) if panel.layers]


def draw_panel(axis: Any, panel: Panel) -> None:  # noqa: ANN401
    """Plot a panel as a heat map with a row per layer."""
    values = np.stack(list(panel.layers.values()))
    maximum = panel.maximum and max(panel.maximum, float(values.max()))
    draw_heatmap(axis, values, vmin=0, vmax=maximum)
    axis.set_yticks(range(len(values)), [f"layer {n}" for n in panel.layers])
    axis.set_title(panel.title, loc="left")


def draw_heatmap(axis: Any, values: Float[np.ndarray, "n T"], **scale: Any) -> Any:  # noqa: ANN401
    """Plot values over the steps, with a colour bar; `scale` is passed to `imshow`."""
    picture = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", **scale)
    axis.figure.colorbar(picture, ax=axis, pad=0.01)
    return picture


def draw_rewards(axis: Any, recording: Recording) -> None:  # noqa: ANN401
    """Plot the reward of each step's action."""
    rewards = recording.rewards()
    axis.bar(np.arange(len(rewards)), rewards, width=1.0, color="tab:green")
    axis.set_xlim(-0.5, len(rewards) - 0.5)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_title("Reward", loc="left")


def draw_episode_starts(axis: Any, recording: Recording) -> None:  # noqa: ANN401
    """Draw a dashed line before the first step of each episode."""
    for step, inputs in enumerate(recording.inputs):
        if inputs.is_first:
            axis.axvline(step - 0.5, color="grey", linestyle="--", linewidth=0.8)


def mean_over_heads(field: Float[Tensor, "1 T H *n"]) -> Float[np.ndarray, "T ..."]:
    """A diagnostic of the one row, averaged over heads."""
    return field[0].float().mean(dim=1).cpu().numpy()
