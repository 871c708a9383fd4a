"""The video of a recording: what the agent sees, the task, the rewards and the memory.

h x w pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
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
_INCHES = {False: (9.6, 4.8), True: (14.4, 4.8)}
"""Size of the figure, by whether two pictures stand side by side; at 100 dots per inch, multiples
of 16 pixels, which codecs need."""
_WIDE = 2.5  # Width over height of an image above which it stands above the plots.


def write_video(recording: Recording, path: Path) -> None:
    """Write a video, .mp4 or .gif, of the pictures next to the rewards and the memory.

    A step's reward is what its action earned, the return what the episode had earned before it.
    Observations are plotted where nothing has a picture.

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
    """The frames of the video: a static background with changing pictures and a moving cursor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = recording.pictures()
    figure = Figure(figsize=_INCHES[len(pictures) > 1], dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    shown, plots = _draw_background(figure, recording, pictures)
    cursors = [axis.axvline(0, color=CURSOR, animated=True) for axis in plots]
    caption = figure.text(0.01, 0.02, "", animated=True)
    figure.suptitle(recording.title)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for step, (reward, total) in enumerate(
        zip(recording.rewards(), recording.returns(), strict=True)
    ):
        canvas.restore_region(background)
        for picture, images in zip(shown, pictures.values(), strict=True):
            picture.set_data(images[step])
            picture.axes.draw_artist(picture)
        earned = "" if np.isnan(reward) else f", reward {reward:.3g}"
        caption.set_text(f"step {step}, return {total:.3g}{earned}")
        figure.draw_artist(caption)
        for cursor in cursors:
            cursor.set_xdata([step, step])
            cursor.axes.draw_artist(cursor)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_background(
    figure: Any,  # noqa: ANN401
    recording: Recording,
    pictures: Mapping[str, Sequence[UInt8[np.ndarray, "h w c"]]],
) -> tuple[list[Any], list[Any]]:
    """Draw what does not change; return the pictures' artists, and the axes that have a cursor."""
    panels = memory_panels(recording)
    is_wide = any(images[0].shape[1] > _WIDE * images[0].shape[0] for images in pictures.values())
    views, plots = _add_axes(
        figure, num_views=max(1, len(pictures)), num_plots=1 + len(panels), is_wide=is_wide
    )
    draw_rewards(plots[0], recording)
    for axis, panel in zip(plots[1:], panels, strict=True):
        draw_panel(axis, panel)
    for axis in plots:
        draw_episode_starts(axis, recording)
    plots[-1].set_xlabel("step")
    shown = [
        _draw_picture(axis, images[0], title)
        for axis, (title, images) in zip(views, pictures.items(), strict=False)
    ]
    if not pictures:
        _draw_vectors(views[0], recording)
        plots.append(views[0])
    return shown, plots


def _add_axes(
    figure: Any,  # noqa: ANN401
    *,
    num_views: int,
    num_plots: int,
    is_wide: bool,
) -> tuple[list[Any], list[Any]]:
    """Axes of the pictures and of the plots, to their right; below one picture that is wide."""
    if is_wide and num_views == 1:
        grid = figure.add_gridspec(1 + num_plots, 1)
        first, *plots = [figure.add_subplot(grid[row]) for row in range(1 + num_plots)]
        return [first], plots
    grid = figure.add_gridspec(num_plots, num_views + 1, width_ratios=[*[1] * num_views, 1.2])
    views = [figure.add_subplot(grid[:, column]) for column in range(num_views)]
    return views, [figure.add_subplot(grid[row, num_views]) for row in range(num_plots)]


def _draw_picture(axis: Any, picture: UInt8[np.ndarray, "h w c"], title: str) -> Any:  # noqa: ANN401
    axis.set_axis_off()
    axis.set_title(title)
    return axis.imshow(picture, cmap="gray", vmin=0, vmax=255, animated=True)


def _draw_vectors(axis: Any, recording: Recording) -> None:  # noqa: ANN401
    """All observations over time."""
    from matplotlib.ticker import MaxNLocator

    draw_heatmap(axis, recording.vectors().T)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("observation, by component")
    axis.set_xlabel("step")


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
