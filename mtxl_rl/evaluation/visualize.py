"""What an agent sees beside what its memory does: a video, or a picture of the whole time."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.agents.encoders import channels_last, is_image
from mtxl_rl.agents.policy import Policy, PolicyInputs
from mtxl_rl.torso import MemoryTransformer, Record

# T steps filmed, N layers, M window, h x w pixels of a frame.

FRAMES_PER_SECOND = 10
_SIDE = 256
_LINE = 14  # Pixels of a line of text and of a bar; even, as video codecs want.
_LABELS = 48  # Pixels left of the bars.
_MIN_WIDTH = 160  # What the longest caption takes.
_COLORS = {"write": (255, 80, 40), "read": (60, 150, 255)}
Strips = dict[str, dict[int, Float[NDArray[Any], " T"]]]


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
            OSError: it cannot be written; nothing is left behind.
            ValueError: the torso is a baseline.
        """
        figure = self._draw()
        with _whole(path, option="timeline") as temporary:
            figure.savefig(temporary, dpi=120)

    def write_video(self, path: Path) -> None:
        """Write the frames, enlarged, at 10 per second; below them the memory, now at the line.

        A step's reward is what its action earned, as in the timeline.

        Raises:
            ImportError: imageio is not installed.
            OSError: it cannot be written; nothing is left behind.
            ValueError: the observations are no images.
        """
        self.check(video=True, timeline=False)
        try:
            import imageio.v2 as imageio
        except ImportError as error:
            raise ImportError("video= needs imageio: pip install 'mtxl_rl[video]'") from error
        images = self._images()
        has_strips = isinstance(self.policy.torso, MemoryTransformer)
        panel = _panel(self._strips() if has_strips else {}, width=images[0].shape[1])
        frames = [
            np.concatenate([image, _at_step(panel, t, len(images), caption)])
            for t, (image, caption) in enumerate(zip(images, self._captions(), strict=True))
        ]
        with _whole(path, option="video") as temporary:
            if path.suffix == ".gif":
                # To memory first: imageio's writer tries again, and complains, when it is deleted.
                content = imageio.mimsave(
                    "<bytes>", frames, format="GIF", duration=1000 / FRAMES_PER_SECOND, loop=0
                )
                temporary.write_bytes(content)
            else:
                _encode(temporary, frames)

    def _stacked(self) -> PolicyInputs:
        """All steps as one row, [1, T, ...]."""
        steps = self.inputs
        observation = {
            key: torch.stack([step.observation[key] for step in steps])[None]
            for key in steps[0].observation
        }
        fields = zip(*(step[1:] for step in steps), strict=True)
        return PolicyInputs(observation, *(torch.stack(field)[None] for field in fields))

    def _captions(self) -> list[str]:
        """Each step's number and reward; that of the last one filmed is not known."""
        rewards = [f", reward {step.previous_reward.item():.3g}" for step in self.inputs[1:]]
        return [f"step {t}{reward}" for t, reward in enumerate([*rewards, ""])]

    def _strips(self) -> Strips:
        """How much is written, and read, per step, in the layers (counted from 1) that do."""
        found = {
            name: {
                n: _per_step(record[key])
                for n, record in enumerate(self.records, 1)
                if key in record
            }
            for name, key in (("write", "memory/strength"), ("read", "moved/read"))
        }
        return {name: rows for name, rows in found.items() if rows}

    def _images(self) -> list[UInt8[NDArray[Any], "h w 3"]]:
        assert self.space.shape is not None
        frames = [step.observation["obs"].cpu().numpy() for step in self.inputs]
        if not channels_last(self.space.shape):
            frames = [frame.transpose(1, 2, 0) for frame in frames]
        factor = max(1, _SIDE // max(frames[0].shape[:2]))
        images = [frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in frames]
        height, width = images[0].shape[:2]
        wide = max(width + width % 2, _MIN_WIDTH)
        margins = ((0, height % 2), (0, wide - width), (0, 0))  # Codecs want even sizes.
        images = [np.pad(image, margins) for image in images]
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
        axes[0].set_title(
            "episodes start at the dashed lines; the brighter, the more, each row relative to its "
            "own largest\n(at its right); attention weights are drawn as their square roots"
        )
        for axis, (name, rows) in zip(axes[1:], strips.items(), strict=False):
            _show(axis, np.stack([_relative(row) for row in rows.values()]))
            axis.set_yticks(range(len(rows)), [f"layer {n}" for n in rows])
            axis.set_ylabel(name)
            for n, row in enumerate(rows.values()):
                _say_largest(axis, row, at=float(n))
        for n, (axis, record) in enumerate(zip(axes[1 + len(strips) :], records, strict=True)):
            weights = _mean_over_heads(record["attention/window"])  # [T, M + 1], farthest first
            _show(axis, np.sqrt(weights.T))
            window = weights.shape[1] - 1
            axis.set_yticks([0, window], [f"{window} back", "now"])
            axis.set_ylabel(f"attends\nlayer {n + 1}")
            _say_largest(axis, weights, at=window / 2)
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


def _relative(row: Float[NDArray[Any], " T"]) -> Float[NDArray[Any], " T"]:
    """To its own maximum."""
    return row / max(float(row.max()), 1e-9)


def _show(axis: Any, values: Float[NDArray[Any], "n T"]) -> None:  # noqa: ANN401
    axis.imshow(values, aspect="auto", interpolation="nearest", cmap="magma", vmin=0)


def _say_largest(axis: Any, values: Float[NDArray[Any], "..."], *, at: float) -> None:  # noqa: ANN401
    """Right of the axis, at this height of its data."""
    said = f"largest {values.max():.2g}"
    axis.text(1.005, at, said, transform=axis.get_yaxis_transform(), va="center", fontsize=9)


def _panel(strips: Strips, *, width: int) -> UInt8[NDArray[Any], "h w 3"]:
    """A line left free, then one bar per layer, over time: writes red, reads blue."""
    bars = [(name, layer, row) for name, rows in strips.items() for layer, row in rows.items()]
    panel = np.zeros((_LINE * (1 + len(bars)), width, 3), np.uint8)
    columns = np.arange(width - _LABELS)
    for n, (name, layer, row) in enumerate(bars, 1):
        line = panel[n * _LINE : (n + 1) * _LINE]
        line[:, :_LABELS] = _text(f"{name} {layer}", width=_LABELS)
        bar = _relative(row)[columns * len(row) // len(columns), None] * _COLORS[name]
        line[1:-1, _LABELS:] = bar.astype(np.uint8)
    return panel


def _at_step(
    panel: NDArray[np.uint8], step: int, num_steps: int, caption: str
) -> NDArray[np.uint8]:
    marked = panel.copy()
    width = panel.shape[1]
    marked[:_LINE] = _text(caption, width=width)
    marked[_LINE:, _LABELS + step * (width - _LABELS) // num_steps] = 255
    return marked


def _text(text: str, *, width: int) -> UInt8[NDArray[Any], "h w 3"]:
    """One line of it, white on black."""
    from PIL import Image, ImageDraw, ImageFont  # imageio brings it.

    image = Image.new("RGB", (width, _LINE))
    ImageDraw.Draw(image).text((2, 1), text, fill="white", font=ImageFont.load_default())
    return np.array(image)


def _encode(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    """Write a film that ffmpeg encodes.

    Not by imageio, which does not ask how ffmpeg ended: it writes most of a short film at its end.

    Raises:
        OSError: it cannot.
    """
    from imageio.plugins.ffmpeg import get_exe

    height, width = frames[0].shape[:2]
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {FRAMES_PER_SECOND} -i -"
    command = [get_exe(), "-loglevel", "quiet", "-y", *raw.split(), "-pix_fmt", "yuv420p", path]
    if subprocess.run(
        command, input=b"".join(frame.data for frame in frames), check=False
    ).returncode:
        raise OSError


@contextmanager
def _whole(path: Path, *, option: str) -> Iterator[Path]:
    """Where to write what becomes `path` when it is whole, and is removed when it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{path.name}")  # Its ending names the format.
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or 'the encoder could not finish it'}; free "
            f"space there, or choose another place with {option}="
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
