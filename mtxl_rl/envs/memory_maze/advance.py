"""One step of all mazes, compiled: each walker moves, then its view is drawn, row by row."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.camera import ViewTables
from mtxl_rl.envs.memory_maze.kernels import bare_kernel, claim, kernel
from mtxl_rl.envs.memory_maze.observe import draw_border
from mtxl_rl.envs.memory_maze.physics import move_walker, new_scratch
from mtxl_rl.envs.memory_maze.span_renderer import Canvas, draw_view, new_canvas
from mtxl_rl.envs.memory_maze.textures import TextureAtlas


class Scenes(NamedTuple):
    """Everything that the pictures of all environments show, and the pictures."""

    position: NDArray[np.float64]
    """[environments, 5]; see `physics.move_walker`."""
    wall_textures: NDArray[np.uint8]
    """[environments, n, n]; see `span_renderer.draw_view` for this and the next fields."""
    is_room: NDArray[np.uint8]
    """[environments, n, n]."""
    wall_height: float
    """Height in metres."""
    targets: NDArray[np.float64]
    """[environments, targets, 2]."""
    target_colors: NDArray[np.float32]
    """[environments, targets, 3]."""
    target_height: float
    """Height in metres."""
    current: NDArray[np.int64]
    """[environments] the target whose colour the border shows."""
    atlas: TextureAtlas
    """The textures."""
    tables: ViewTables
    """Tables that depend only on the picture's size."""
    border: int
    """Width of the border in pixels."""
    is_stale: NDArray[np.bool_]
    """[environments] whether the picture must be drawn."""
    images: NDArray[np.uint8]
    """[environments, side, side, 3]."""


@kernel
def advance(
    rows: NDArray[np.int64],
    velocity: NDArray[np.float64],
    controls: NDArray[np.float64],
    is_still: NDArray[np.bool_],
    num_substeps: int,
    box_of_cell: NDArray[np.int16],
    boxes: NDArray[np.uint8],
    touched: NDArray[np.int64],
    touched_at_start: NDArray[np.int64],
    scenes: Scenes,
    is_drawn_later: bool,
) -> None:
    """Move walkers in place, except those that stand still, and draw their views.

    A picture stays stale where an episode starts or the current target may change.

    Args:
        rows: The environments not claimed yet; see `kernels.claim`.
        velocity: [environments, 5]; see `physics.move_walker` for this and the next arguments.
        controls: [environments, 2] roll and steer.
        is_still: [environments] whether the episode ended in the step before.
        num_substeps: Physics steps of one action.
        box_of_cell: [environments, n, n].
        boxes: [environments, boxes, 4].
        touched: [environments] is filled with the targets touched, one bit each.
        touched_at_start: [environments] bits of the targets touched when the episode started.
        scenes: Its positions, pictures and `is_stale` are filled.
        is_drawn_later: Whether all pictures are left stale.
    """
    scratch, canvas = new_scratch(), new_canvas(scenes.images.shape[1])
    e = claim(rows)
    while e >= 0:
        touched[e] = 0
        if not is_still[e]:
            touched[e] = move_walker(
                scenes.position[e],
                velocity[e],
                controls[e, 0],
                controls[e, 1],
                num_substeps,
                box_of_cell[e],
                boxes[e],
                scenes.targets[e],
                scenes.target_height,
                scratch,
            )
        is_reached = touched[e] >> scenes.current[e] & 1
        is_stale = is_drawn_later or is_still[e] or is_reached or touched_at_start[e]
        scenes.is_stale[e] = is_stale
        if not is_stale:
            _draw(e, scenes, canvas)
        e = claim(rows)


@kernel
def draw_views(rows: NDArray[np.int64], scenes: Scenes) -> None:
    """Draw the stale pictures and clear `is_stale`; for `rows`, see `kernels.claim`."""
    canvas = new_canvas(scenes.images.shape[1])
    e = claim(rows)
    while e >= 0:
        if scenes.is_stale[e]:
            _draw(e, scenes, canvas)
            scenes.is_stale[e] = False
        e = claim(rows)


@bare_kernel
def _draw(e: int, scenes: Scenes, canvas: Canvas) -> None:
    """Draw the view of environment e and its border."""
    draw_view(
        scenes.position[e],
        scenes.wall_textures[e],
        scenes.is_room[e],
        scenes.wall_height,
        scenes.targets[e],
        scenes.target_colors[e],
        scenes.target_height,
        scenes.atlas,
        scenes.tables,
        scenes.images[e],
        canvas,
    )
    draw_border(scenes.images[e], scenes.border, scenes.target_colors[e, scenes.current[e]])
