"""What an agent sees beside what its memory does: a video, or a picture of the whole time."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.encoders import channels_last, is_image
from mtxl_rl.policy import Policy, PolicyInputs
from mtxl_rl.torso import MemoryTransformer, Record

# T steps filmed, N layers, M window, h x w pixels of a frame.

FRAMES_PER_SECOND = 10
_SIDE = 256


class Film:
    """Records the first environment of an evaluation, up to `max_steps` steps.

    What the memory did is found afterwards, by running the recorded inputs through
    `Policy.inspect` at once: acting and learning compute the same, so it is what happened.
    """

    def __init__(
        self, policy: Policy, observation_space: gymnasium.Space[Any], *, max_steps: int
    ) -> None:
        self.policy = policy
        self.space = observation_space
        self.max_steps = max_steps
        self.inputs: list[PolicyInputs] = []

    def check(self, *, video: bool, timeline: bool) -> None:
        """Whether there will be something to show.

        Raises:
            ValueError: a timeline of a baseline is wanted, or a video where nothing is seen.
        """
        if timeline and not isinstance(self.policy.torso, MemoryTransformer):
            raise ValueError(
                f"torso.kind={self.policy.torso.config.kind} tells nothing of its memory, which "
                "timeline= draws; only torso.kind=transformer does"
            )
        if video and not is_image(self.space):
            raise ValueError(
                "video= needs image observations, and this environment shows "
                f"{type(self.space).__name__} observations; timeline= draws what the memory does "
                "in any"
            )

    def add(self, inputs: PolicyInputs) -> None:
        """Record the first environment's step, unless there are enough."""
        if len(self.inputs) < self.max_steps:
            observation = {key: field[0] for key, field in inputs.observation.items()}
            self.inputs.append(PolicyInputs(observation, *(field[0] for field in inputs[1:])))

    @cached_property
    def records(self) -> list[Record]:
        """What happened in each layer at the steps recorded; asked for when all are."""
        return self.policy.inspect(self._stacked(), self.policy.torso.initial_state(1))

    def write_timeline(self, path: Path) -> None:
        """Draw, over the steps: the rewards, what each layer reads, writes and attends to.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the torso is a baseline.
        """
        figure = self._draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)

    def write_video(self, path: Path) -> None:
        """Write the frames, enlarged, at 10 per second; below them the memory, now at the line.

        Raises:
            ImportError: imageio is not installed.
            ValueError: the observations are no images.
        """
        self.check(video=True, timeline=False)
        try:
            import imageio.v2 as imageio
        except ImportError as error:
            raise ImportError("video= needs imageio: pip install 'mtxl_rl[video]'") from error
        images = self._images()
        if isinstance(self.policy.torso, MemoryTransformer):
            panel = _panel(self._strips(), width=images[0].shape[1])
            images = [
                np.concatenate([image, _with_cursor(panel, t, len(images))])
                for t, image in enumerate(images)
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gif":
            imageio.mimsave(path, images, duration=1000 / FRAMES_PER_SECOND, loop=0)
        else:
            imageio.mimsave(path, images, fps=FRAMES_PER_SECOND, macro_block_size=None)

    def _stacked(self) -> PolicyInputs:
        """All steps as one row, [1, T, ...]."""
        steps = self.inputs
        observation = {
            key: torch.stack([step.observation[key] for step in steps])[None]
            for key in steps[0].observation
        }
        fields = zip(*(step[1:] for step in steps), strict=True)
        return PolicyInputs(observation, *(torch.stack(field)[None] for field in fields))

    def _strips(self) -> dict[str, Float[NDArray[Any], "N T"]]:
        """Per layer and step, each scaled by its own maximum: how much is written, and read."""
        strips = {}
        for name, key in (("write", "memory/strength"), ("read", "moved/read")):
            rows = [_per_step(record[key]) for record in self.records if key in record]
            if rows:
                strips[name] = np.stack([row / max(float(row.max()), 1e-9) for row in rows])
        return strips

    def _images(self) -> list[UInt8[NDArray[Any], "h w 3"]]:
        assert self.space.shape is not None
        frames = [step.observation["obs"].cpu().numpy() for step in self.inputs]
        if not channels_last(self.space.shape):
            frames = [frame.transpose(1, 2, 0) for frame in frames]
        factor = max(1, _SIDE // max(frames[0].shape[:2]))
        images = [frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in frames]
        return [image.repeat(3, axis=2) if image.shape[2] == 1 else image for image in images]

    def _draw(self) -> Any:  # noqa: ANN401
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "timeline= needs matplotlib: pip install 'mtxl_rl[report]'"
            ) from error
        inputs, records, strips = self._stacked(), self.records, self._strips()
        num_rows = 1 + len(strips) + len(records)
        heights = (
            [1.0] + [0.35 * len(rows) + 0.3 for rows in strips.values()] + [1.4] * len(records)
        )
        figure = Figure(figsize=(11, 0.9 * sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(num_rows, 1, sharex=True, gridspec_kw={"height_ratios": heights})
        starts = np.flatnonzero(inputs.is_first[0].cpu().numpy())
        reward = inputs.previous_reward[0].cpu().numpy()
        axes[0].bar(np.arange(len(reward)) - 1, reward, width=1.0, color="C2")
        axes[0].set_ylabel("reward")
        axes[0].set_title("episodes start at the dashed lines; the brighter, the more")
        for axis, (name, rows) in zip(axes[1:], strips.items(), strict=False):
            axis.imshow(rows, aspect="auto", interpolation="nearest", cmap="magma", vmin=0)
            axis.set_yticks(range(len(rows)), [f"layer {n + 1}" for n in range(len(rows))])
            axis.set_ylabel(name)
        for n, (axis, record) in enumerate(zip(axes[1 + len(strips) :], records, strict=True)):
            weights = _mean_over_heads(record["attention/window"])  # [T, M + 1], farthest first
            axis.imshow(np.sqrt(weights.T), aspect="auto", interpolation="nearest", cmap="magma")
            window = weights.shape[1] - 1
            axis.set_yticks([0, window], [f"{window} back", "now"])
            axis.set_ylabel(f"attends\nlayer {n + 1}")
        for axis in axes:
            for start in starts:
                axis.axvline(start - 0.5, color="grey", linestyle="--", linewidth=0.8)
        axes[-1].set_xlabel("step")
        return figure


def _mean_over_heads(weights: Float[Tensor, "1 T H n"]) -> Float[NDArray[Any], "T n"]:
    return weights[0].mean(dim=1).float().cpu().numpy()


def _per_step(field: Tensor) -> Float[NDArray[Any], " T"]:
    """[1, T] as it is, [1, T, H] as its mean over heads."""
    row = field[0].float()
    return (row if row.ndim == 1 else row.mean(dim=1)).cpu().numpy()


def _panel(
    strips: dict[str, Float[NDArray[Any], "N T"]], *, width: int
) -> UInt8[NDArray[Any], "h w 3"]:
    """One bar of 8 pixels per layer, over time: writes red, reads blue; brighter is more."""
    colors = {"write": np.array([255, 80, 40]), "read": np.array([60, 150, 255])}
    bars: Sequence[NDArray[Any]] = [
        (row[np.arange(width) * len(row) // width, None] * colors[name])[None].repeat(8, axis=0)
        for name, rows in strips.items()
        for row in rows
    ]
    gap = np.zeros((2, width, 3))
    stack = [part for bar in bars for part in (gap, bar)] or [gap]
    height = sum(len(part) for part in stack)
    stack.append(np.zeros((height % 2, width, 3)))  # Video codecs want even sizes.
    return np.concatenate(stack).astype(np.uint8)


def _with_cursor(panel: NDArray[np.uint8], step: int, num_steps: int) -> NDArray[np.uint8]:
    marked = panel.copy()
    marked[:, step * panel.shape[1] // num_steps] = 255
    return marked
