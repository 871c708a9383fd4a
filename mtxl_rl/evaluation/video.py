"""The video of a recording: observations next to the rewards and the memory.

h x w pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mtxl_rl.evaluation.drawing import (
    CURSOR,
    draw_episode_starts,
    draw_heatmap,
    draw_panel,
    draw_rewards,
    memory_panels,
    require_drawing,
)
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.tracking.files import atomic_write

FRAMES_PER_SECOND = 10
VIDEO_SUFFIXES = (".mp4", ".gif")
_VIDEO_INCHES = (8.0, 4.0)  # At 100 dots per inch, multiples of 16 pixels, which codecs need.
_WIDE = 2.5  # Width over height of an image above which it stands above the plots.


def write_video(recording: Recording, path: Path) -> None:
    """Write a video, .mp4 or .gif, of the observations next to the rewards and the memory.

    A step's reward is what its action earned. Observations without an image are plotted.

    Raises:
        ImportError: imageio or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    require_drawing("video")
    import imageio.v2 as imageio

    options: dict[str, Any] = {"fps": FRAMES_PER_SECOND}
    if path.suffix == ".gif":
        options = {"duration": 1000 / FRAMES_PER_SECOND, "loop": 0}
    with atomic_write(path, advice="free space there, or choose another video=") as temporary:
        writer: Any = imageio.get_writer(temporary, **options)
        with writer:
            for frame in _frames(recording):
                writer.append_data(frame)
        _check_num_frames(temporary, len(recording.inputs))


def _frames(recording: Recording) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of the video: a static background with a moving cursor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_VIDEO_INCHES, dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    panels = memory_panels(recording)
    images, num_plots = recording.images(), 1 + len(panels)
    is_wide = bool(images) and images[0].shape[1] > _WIDE * images[0].shape[0]
    view, plots = _add_video_axes(figure, num_plots=num_plots, is_wide=is_wide)
    draw_rewards(plots[0], recording)
    for axis, panel in zip(plots[1:], panels, strict=True):
        draw_panel(axis, panel)
    for axis in plots:
        draw_episode_starts(axis, recording)
    plots[-1].set_xlabel("step")
    picture = _draw_view(view, recording, images)
    cursors = [axis.axvline(0, color=CURSOR, animated=True) for axis in plots]
    if not images:
        cursors.append(view.axvline(0, color=CURSOR, animated=True))
    height, alignment = (-0.1, "top") if is_wide else (1.01, "bottom")
    caption = view.text(
        0.5, height, "", transform=view.transAxes, ha="center", va=alignment, animated=True
    )
    figure.suptitle(recording.title)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for step, reward in enumerate(recording.rewards()):
        canvas.restore_region(background)
        if images:
            picture.set_data(images[step])
            view.draw_artist(picture)
        caption.set_text(f"step {step}" + ("" if np.isnan(reward) else f", reward {reward:.3g}"))
        view.draw_artist(caption)
        for cursor in cursors:
            cursor.set_xdata([step, step])
            cursor.axes.draw_artist(cursor)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_view(axis: Any, recording: Recording, images: list[UInt8[np.ndarray, "h w c"]]) -> Any:  # noqa: ANN401
    """The current image, or all observations over time."""
    from matplotlib.ticker import MaxNLocator

    if images:
        axis.set_axis_off()
        return axis.imshow(images[0], cmap="gray", vmin=0, vmax=255, animated=True)
    vectors = recording.vectors().T
    picture = draw_heatmap(axis, vectors)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("observation, by component")
    axis.set_xlabel("step")
    return picture


def _add_video_axes(figure: Any, *, num_plots: int, is_wide: bool) -> tuple[Any, list[Any]]:  # noqa: ANN401
    """Axes of the observation and of the plots, below it if it is wide, else to its right."""
    if is_wide:
        grid = figure.add_gridspec(1 + num_plots, 1)
        view = figure.add_subplot(grid[0])
        return view, [figure.add_subplot(grid[row]) for row in range(1, 1 + num_plots)]
    grid = figure.add_gridspec(num_plots, 2, width_ratios=[1, 1.2])
    view = figure.add_subplot(grid[:, 0])
    return view, [figure.add_subplot(grid[row, 1]) for row in range(num_plots)]


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
