"""One step of all mazes, compiled: walkers move and what they see is drawn, a row at a time."""

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.camera import ViewTables
from mtxl_rl.envs.memory_maze.kernels import claim, kernel
from mtxl_rl.envs.memory_maze.observe import draw_border
from mtxl_rl.envs.memory_maze.physics import move_walker, new_scratch
from mtxl_rl.envs.memory_maze.span_renderer import draw_view, new_canvas
from mtxl_rl.envs.memory_maze.textures import TextureAtlas


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
    position: NDArray[np.float64],
    wall_textures: NDArray[np.uint8],
    is_room: NDArray[np.uint8],
    wall_height: float,
    targets: NDArray[np.float64],
    target_colors: NDArray[np.float32],
    target_height: float,
    current: NDArray[np.int64],
    atlas: TextureAtlas,
    tables: ViewTables,
    border: int,
    is_stale: NDArray[np.bool_],
    images: NDArray[np.uint8],
    is_drawn_later: bool,
) -> None:
    """Move walkers in place, except those that stand still, and draw what they see.

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
        position: See `draw_views`, for this and the next arguments.
        wall_textures: See `draw_views`.
        is_room: See `draw_views`.
        wall_height: See `draw_views`.
        targets: See `draw_views`.
        target_colors: See `draw_views`.
        target_height: See `draw_views`.
        current: See `draw_views`.
        atlas: See `draw_views`.
        tables: See `draw_views`.
        border: See `draw_views`.
        is_stale: [environments] is filled.
        images: See `draw_views`.
        is_drawn_later: Whether all pictures are left stale.
    """
    scratch, canvas = new_scratch(), new_canvas(images.shape[1])
    e = claim(rows)
    while e >= 0:
        touched[e] = 0
        if not is_still[e]:
            touched[e] = move_walker(
                position[e],
                velocity[e],
                controls[e, 0],
                controls[e, 1],
                num_substeps,
                box_of_cell[e],
                boxes[e],
                targets[e],
                target_height,
                scratch,
            )
        is_reached = touched[e] >> current[e] & 1
        is_stale[e] = is_drawn_later or is_still[e] or is_reached or touched_at_start[e]
        if not is_stale[e]:
            draw_view(
                position[e],
                wall_textures[e],
                is_room[e],
                wall_height,
                targets[e],
                target_colors[e],
                target_height,
                atlas,
                tables,
                images[e],
                canvas,
            )
            draw_border(images[e], border, target_colors[e, current[e]])
        e = claim(rows)


@kernel
def draw_views(
    rows: NDArray[np.int64],
    position: NDArray[np.float64],
    wall_textures: NDArray[np.uint8],
    is_room: NDArray[np.uint8],
    wall_height: float,
    targets: NDArray[np.float64],
    target_colors: NDArray[np.float32],
    target_height: float,
    current: NDArray[np.int64],
    atlas: TextureAtlas,
    tables: ViewTables,
    border: int,
    is_stale: NDArray[np.bool_],
    images: NDArray[np.uint8],
) -> None:
    """Draw the stale pictures and their borders.

    Args:
        rows: The environments not claimed yet; see `kernels.claim`.
        position: [environments, 5]; see `span_renderer.draw_view` for the next arguments, too.
        wall_textures: [environments, n, n].
        is_room: [environments, n, n].
        wall_height: In metres.
        targets: [environments, targets, 2].
        target_colors: [environments, targets, 3].
        target_height: In metres.
        current: [environments] the targets whose colours the borders show.
        atlas: The textures.
        tables: Tables that depend only on the picture's size.
        border: Width of the border in pixels.
        is_stale: [environments] is cleared.
        images: [environments, side, side, 3] is filled where stale.
    """
    canvas = new_canvas(images.shape[1])
    e = claim(rows)
    while e >= 0:
        if is_stale[e]:
            draw_view(
                position[e],
                wall_textures[e],
                is_room[e],
                wall_height,
                targets[e],
                target_colors[e],
                target_height,
                atlas,
                tables,
                images[e],
                canvas,
            )
            draw_border(images[e], border, target_colors[e, current[e]])
            is_stale[e] = False
        e = claim(rows)
