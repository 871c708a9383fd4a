"""Pictures of an agent's memory: a video of its steps, and a plot over time.

T recorded steps, N layers (counted from 1), H heads, M window length, h x w pixels.
"""

import importlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.encoders import channels_last, is_image, observation_leaves
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.evaluation.retrieval import has_retrievals, retrieval_shares
from mtxl_rl.torso import MemoryTransformer
from mtxl_rl.tracking.cli import say
from mtxl_rl.tracking.files import atomic_write

FRAMES_PER_SECOND = 10
VIDEO_SUFFIXES = (".mp4", ".gif")
PLOT_SUFFIXES = (".png", ".svg")
_VIDEO_INCHES = (8.0, 4.0)  # At 100 dots per inch, multiples of 16 pixels, which codecs need.
_CURSOR = "tab:red"
_WIDE = 2.5  # Width over height of an image above which it stands above the plots.
_MIN_SHARE = 0.1  # Of a readout; below it, no single write is what the read returns.
_MAX_COMPONENTS = 16  # Of an observation that the timeline shows.


def require_drawing(option: str) -> None:
    """Check that the packages of an option, `video`, `timeline` or `probe`, are installed.

    Raises:
        ImportError: one is not; the message says what to install.
    """
    for name in ("matplotlib", "imageio", "imageio_ffmpeg")[: 3 if option == "video" else 1]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"{option}= needs {name}: pip install 'mtxl_rl[video]'") from error


def render_first(env: Any) -> UInt8[np.ndarray, "h w 3"] | None:  # noqa: ANN401 - a vector env
    """A picture of the first environment: a built-in task's, or of render_mode=rgb_array."""
    base = env.unwrapped
    if hasattr(base, "render_row"):
        return np.asarray(base.render_row(0))
    if getattr(base, "render_mode", None) == "rgb_array":
        frames = env.render()
        return None if frames is None else np.asarray(frames[0])
    return None


class _Panel(NamedTuple):
    """A quantity per layer and step."""

    title: str
    maximum: float | None  # End of the colour scale; None: the largest value.
    layers: dict[int, Float[np.ndarray, " T"]]


class VideoRecorder:
    """Records the first environment of an evaluation, up to `max_steps` steps, and draws it.

    The memory's diagnostics are computed afterwards, by `Policy.inspect` over all recorded inputs:
    the policy computes the same outputs while acting and while learning.

    Args:
        policy: The policy that acts.
        observation_space: Of one environment.
        max_steps: Number of steps to record.
        title: Name of the task, for the titles of the pictures.
        renders: Whether an environment without image observations draws itself for the video.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: gymnasium.Space[Any],
        *,
        max_steps: int,
        title: str = "",
        renders: bool = True,
    ) -> None:
        self.policy = policy
        self.leaves = observation_leaves(observation_space)
        self.max_steps = max_steps
        self.title = ": ".join(part for part in (title, _agent_name(policy)) if part)
        self.inputs: list[PolicyInputs] = []
        self.observation_names: Sequence[str] = ()
        """Names of a vector observation's first components, where the task has any."""
        self._renders = renders and self._image_key() is None
        self.frames: list[UInt8[np.ndarray, "h w 3"]] = []
        """Pictures that the environment draws of itself, where its observation is not an image."""

    @property
    def has_timeline(self) -> bool:
        """Whether the torso has attention and a memory to plot; the baselines have not."""
        return isinstance(self.policy.torso, MemoryTransformer)

    def observe(self, actor: Actor) -> None:
        """Record the current step of an actor's first environment, with its picture if any."""
        if len(self.inputs) < self.max_steps:
            base: Any = actor.env
            self.observation_names = getattr(base.unwrapped, "observation_names", ())
            self.add(actor.inputs())
            self._render(actor)

    def _render(self, actor: Actor) -> None:
        """Record the environment's picture; one that fails is reported once and left out."""
        if not self._renders:
            return
        try:
            frame = render_first(actor.env)
        except Exception as error:
            say(f"the environment was not drawn: {type(error).__name__}: {error}")
            frame = None
        if frame is None:
            self._renders = False
            self.frames.clear()
        else:
            self.frames.append(frame)

    def add(self, inputs: PolicyInputs) -> None:
        """Record the first environment's step, up to `max_steps`."""
        if len(self.inputs) < self.max_steps:
            observation = {key: field[0] for key, field in inputs.observation.items()}
            self.inputs.append(PolicyInputs(observation, *(field[0] for field in inputs[1:])))

    @cached_property
    def records(self) -> list[dict[str, Tensor]]:
        """Diagnostics of each layer over the recorded steps; read it after the last `add`."""
        if not self.has_timeline:
            return []
        return self.policy.inspect(self._stacked(), self.policy.torso.initial_state(1))

    def write(self, path: Path) -> bool:
        """Write a video (.mp4, .gif) or a timeline, and return whether that succeeded.

        A failure is reported, not raised: an evaluation is never lost to a picture.
        """
        is_video = path.suffix in VIDEO_SUFFIXES
        try:
            (self.write_video if is_video else self.write_timeline)(path)
        except Exception as error:
            say(f"{path} was not drawn: {type(error).__name__}: {error}")
            return False
        return True

    def write_timeline(self, path: Path) -> None:
        """Plot what happened, memory writes and reads, and attention over the recorded steps.

        Arcs lead from a write of the delta memory to the reads that return most of it.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: The file cannot be written.
            ValueError: The torso is a baseline; see `has_timeline`.
        """
        if not self.has_timeline:
            kind = self.policy.torso.config.kind
            raise ValueError(
                f"a timeline plots attention and long-term memory, which a torso of kind {kind} "
                "does not have; leave it out"
            )
        figure = self._draw_timeline()
        with atomic_write(
            path, advice="free space there, or choose another timeline="
        ) as temporary:
            figure.savefig(temporary, dpi=120)

    def write_video(self, path: Path) -> None:
        """Write a video, .mp4 or .gif, of the observations next to the rewards and the memory.

        A step's reward is what its action earned. Observations without an image are plotted.

        Raises:
            ImportError: imageio or matplotlib is not installed.
            OSError: The file cannot be written.
        """
        try:
            import imageio.v2 as imageio
        except ImportError as error:
            raise ImportError("video= needs imageio: pip install 'mtxl_rl[video]'") from error
        options: dict[str, Any] = {"fps": FRAMES_PER_SECOND}
        if path.suffix == ".gif":
            options = {"duration": 1000 / FRAMES_PER_SECOND, "loop": 0}
        with atomic_write(path, advice="free space there, or choose another video=") as temporary:
            writer: Any = imageio.get_writer(temporary, **options)
            with writer:
                for frame in self._frames():
                    writer.append_data(frame)
            _check_num_frames(temporary, len(self.inputs))

    def _stacked(self) -> PolicyInputs:
        """All steps as one row, [1, T, ...]."""
        steps = self.inputs
        observation = {
            key: torch.stack([step.observation[key] for step in steps])[None]
            for key in steps[0].observation
        }
        fields = zip(*(step[1:] for step in steps), strict=True)
        return PolicyInputs(observation, *(torch.stack(field)[None] for field in fields))

    def _rewards(self) -> Float[np.ndarray, " T"]:
        """Reward of each step's action; NaN at the last step, where it is not known."""
        rewards = [step.previous_reward.item() for step in self.inputs[1:]]
        return np.array([*rewards, np.nan])

    def _image_key(self) -> str | None:
        """The first part of the observation that is an image."""
        return next((key for key, space in self.leaves.items() if is_image(space)), None)

    def _images(self) -> list[UInt8[np.ndarray, "h w c"]]:
        """The first image of each step's observation, with 1 or 3 channels, or else its frame."""
        key = self._image_key()
        if key is None:
            return self.frames
        images = [step.observation[key].cpu().numpy() for step in self.inputs]
        if not channels_last(images[0].shape):
            images = [image.transpose(1, 2, 0) for image in images]
        if images[0].shape[2] == 3:
            return images
        return [image.mean(axis=2, keepdims=True).astype(np.uint8) for image in images]

    def _vectors(self) -> Float[np.ndarray, "T n"]:
        """The numbers of each step's observation."""
        columns = [
            torch.stack([step.observation[key].float().flatten() for step in self.inputs])
            for key in self.leaves
        ]
        return torch.cat(columns, dim=1).cpu().numpy()

    def _panels(self) -> list[_Panel]:
        """Strength of memory writes and reads, of the layers that have a long-term memory."""
        write = _Panel("Write strength, mean over heads", 1.0, {})
        read = _Panel("Read, as a change relative to the stream", None, {})
        slots = _Panel("Attention weight on memory slots, mean over heads", 1.0, {})
        for n, record in enumerate(self.records, 1):
            if "memory/strength" in record:
                write.layers[n] = _mean_over_heads(record["memory/strength"])
            if "moved/read" in record:
                read.layers[n] = record["moved/read"][0].float().cpu().numpy()
            if "attention/slots" in record:
                weights = record["attention/slots"]
                written = weights[..., : 2 * weights.shape[-1] // 3]  # Without the empty memory's.
                slots.layers[n] = _mean_over_heads(written.sum(dim=-1))
        return [panel for panel in (write, read, slots) if panel.layers]

    def _draw_timeline(self) -> Any:  # noqa: ANN401
        from matplotlib.colors import LogNorm

        panels, records = self._panels(), self.records
        events = [self._draw_rewards, self._draw_actions]
        if self._image_key() is None:
            events.insert(0, self._draw_observations)
        retrievals = [n for n, record in enumerate(records, 1) if has_retrievals(record)]
        heights = [
            *[1.2] * len(events),
            *(0.5 + 0.35 * len(panel.layers) for panel in panels),
            *[1.6] * len(retrievals),
            *[1.4] * len(records),
        ]
        figure = _new_figure((11.0, 1.1 * sum(heights) + 1), option="timeline")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
        axes = axes[:, 0]
        rows = iter(axes)
        for draw_event in events:
            draw_event(next(rows))
        for panel in panels:
            _draw_panel(next(rows), panel)
        for n in retrievals:
            self._draw_retrievals(next(rows), n)
        for n, (axis, record) in enumerate(zip(rows, records, strict=True), 1):
            weights = _mean_over_heads(record["attention/window"]).T  # [M + 1, T], oldest first
            window = len(weights) - 1
            norm = LogNorm(1e-3, 1, clip=True)
            _draw_heatmap(axis, np.ma.masked_equal(weights, 0), norm=norm)
            axis.set_yticks([0, window], [f"{window} steps ago", "this step"])
            axis.set_title(
                f"Attention weight on the window, layer {n}, mean over heads", loc="left"
            )
        for axis in axes:
            self._draw_episode_starts(axis)
        axes[-1].set_xlabel("step")
        figure.suptitle(f"{self.title}\ndashed lines: an episode starts")
        return figure

    def _frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames of the video: a static background with a moving cursor."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = _new_figure(_VIDEO_INCHES, option="video")
        canvas: Any = FigureCanvasAgg(figure)
        panels = self._panels()
        images, num_plots = self._images(), 1 + len(panels)
        is_wide = bool(images) and images[0].shape[1] > _WIDE * images[0].shape[0]
        view, plots = _add_video_axes(figure, num_plots=num_plots, is_wide=is_wide)
        self._draw_rewards(plots[0])
        for axis, panel in zip(plots[1:], panels, strict=True):
            _draw_panel(axis, panel)
        for axis in plots:
            self._draw_episode_starts(axis)
        plots[-1].set_xlabel("step")
        picture = self._draw_view(view, images)
        cursors = [axis.axvline(0, color=_CURSOR, animated=True) for axis in plots]
        if not images:
            cursors.append(view.axvline(0, color=_CURSOR, animated=True))
        height, alignment = (-0.1, "top") if is_wide else (1.01, "bottom")
        caption = view.text(
            0.5, height, "", transform=view.transAxes, ha="center", va=alignment, animated=True
        )
        figure.suptitle(self.title)
        canvas.draw()
        background = canvas.copy_from_bbox(figure.bbox)
        for step, reward in enumerate(self._rewards()):
            canvas.restore_region(background)
            if images:
                picture.set_data(images[step])
                view.draw_artist(picture)
            caption.set_text(
                f"step {step}" + ("" if np.isnan(reward) else f", reward {reward:.3g}")
            )
            view.draw_artist(caption)
            for cursor in cursors:
                cursor.set_xdata([step, step])
                cursor.axes.draw_artist(cursor)
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _draw_view(self, axis: Any, images: list[UInt8[np.ndarray, "h w c"]]) -> Any:  # noqa: ANN401
        """The current image, or all observations over time."""
        from matplotlib.ticker import MaxNLocator

        if images:
            axis.set_axis_off()
            return axis.imshow(images[0], cmap="gray", vmin=0, vmax=255, animated=True)
        vectors = self._vectors().T
        picture = _draw_heatmap(axis, vectors)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("observation, by component")
        axis.set_xlabel("step")
        return picture

    def _draw_rewards(self, axis: Any) -> None:  # noqa: ANN401
        rewards = self._rewards()
        axis.bar(np.arange(len(rewards)), rewards, width=1.0, color="tab:green")
        axis.set_xlim(-0.5, len(rewards) - 0.5)
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set_title("Reward", loc="left")

    def _draw_actions(self, axis: Any) -> None:  # noqa: ANN401
        """The components of each step's action; the last step's is not known."""
        actions = torch.stack([step.previous_action.flatten() for step in self.inputs[1:]])
        for component in actions.float().cpu().numpy().T:
            axis.plot(component, ".", markersize=3, color="tab:blue")
        axis.set_title("Action", loc="left")

    def _draw_observations(self, axis: Any) -> None:  # noqa: ANN401
        vectors = self._vectors().T[:_MAX_COMPONENTS]
        _draw_heatmap(axis, vectors)
        names = self.observation_names[: len(vectors)]
        axis.set_yticks(range(len(names)), names)
        if not names:
            axis.set_ylabel("component")
        axis.set_title("Observation", loc="left")

    def _draw_retrievals(self, axis: Any, layer: int) -> None:  # noqa: ANN401
        """An arc from the write that each read returns most of, coloured by its share."""
        from matplotlib.collections import LineCollection

        is_first = torch.stack([step.is_first for step in self.inputs])
        config = self.policy.torso.config
        shares = retrieval_shares(
            self.records[layer - 1], is_first, segment_length=config.segment_length
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
        moved = self.records[layer - 1]["moved/read"][0].float().cpu().numpy()[reads]
        widths = 0.3 + 2.5 * moved / max([1e-9, *moved])
        lines = LineCollection(arcs, array=share[reads], cmap="viridis", linewidths=widths)
        lines.set_clim(0, 1)
        axis.add_collection(lines)
        axis.plot(write[reads], np.zeros(len(reads)), "v", color=_CURSOR, markersize=4)
        axis.set_ylim(0, 1.05 * max([1, *(reads - write[reads])]))
        axis.set_ylabel("steps back")
        axis.set_title(
            f"Retrieved from, layer {layer}: an arc from the write (red) that a read returns most "
            "of; colour: its share; width: the read's effect",
            loc="left",
        )
        axis.figure.colorbar(lines, ax=axis, pad=0.01)

    def _draw_episode_starts(self, axis: Any) -> None:  # noqa: ANN401
        for step, inputs in enumerate(self.inputs):
            if inputs.is_first:
                axis.axvline(step - 0.5, color="grey", linestyle="--", linewidth=0.8)


def _agent_name(policy: Policy) -> str:
    """The torso's kind and memory, as in `transformer with delta memory`."""
    config = policy.torso.config
    is_transformer = config.kind == "transformer"
    return f"transformer with {config.long_term} memory" if is_transformer else config.kind


def _new_figure(inches: tuple[float, float], *, option: str) -> Any:  # noqa: ANN401
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{option}= needs matplotlib: pip install 'mtxl_rl[report]'") from error
    return Figure(figsize=inches, dpi=100, layout="constrained")


def _add_video_axes(figure: Any, *, num_plots: int, is_wide: bool) -> tuple[Any, list[Any]]:  # noqa: ANN401
    """Axes of the observation and of the plots, below it if it is wide, else to its right."""
    if is_wide:
        grid = figure.add_gridspec(1 + num_plots, 1)
        view = figure.add_subplot(grid[0])
        return view, [figure.add_subplot(grid[row]) for row in range(1, 1 + num_plots)]
    grid = figure.add_gridspec(num_plots, 2, width_ratios=[1, 1.2])
    view = figure.add_subplot(grid[:, 0])
    return view, [figure.add_subplot(grid[row, 1]) for row in range(num_plots)]


def _mean_over_heads(field: Float[Tensor, "1 T H *n"]) -> Float[np.ndarray, "T ..."]:
    return field[0].float().mean(dim=1).cpu().numpy()


def _draw_panel(axis: Any, panel: _Panel) -> None:  # noqa: ANN401
    values = np.stack(list(panel.layers.values()))
    maximum = panel.maximum and max(panel.maximum, float(values.max()))
    _draw_heatmap(axis, values, vmin=0, vmax=maximum)
    axis.set_yticks(range(len(values)), [f"layer {n}" for n in panel.layers])
    axis.set_title(panel.title, loc="left")


def _draw_heatmap(axis: Any, values: Float[np.ndarray, "n T"], **scale: Any) -> Any:  # noqa: ANN401
    picture = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", **scale)
    axis.figure.colorbar(picture, ax=axis, pad=0.01)
    return picture


def _check_num_frames(path: Path, num_frames: int) -> None:
    """Raise if an .mp4 is not complete: imageio does not check how its encoder ended."""
    if path.suffix != ".mp4":
        return
    from imageio_ffmpeg import count_frames_and_secs

    try:
        is_complete = count_frames_and_secs(str(path))[0] == num_frames
    except RuntimeError:
        is_complete = False
    if not is_complete:
        raise OSError("the video encoder did not finish")
