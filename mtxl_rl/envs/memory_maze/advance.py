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
    """Moves walkers in place, but for those that stand still, and draws what they see.

    A picture is left stale where an episode starts or another target may come to be asked for.

    Args:
        rows: The environments that are left; see `kernels.claim`.
        velocity: [environments, 5]; see `physics.move_walker`, as for the next ones.
        controls: [environments, 2] roll and steer.
        is_still: [environments] whose episode ended in the step before.
        num_substeps: Of a step.
        box_of_cell: [environments, n, n].
        boxes: [environments, boxes, 4].
        touched: [environments] is filled with the targets touched, a bit each.
        touched_at_start: [environments] of those that the walker touched as the episode started.
        position: As in `draw_views`, like all that follows.
        wall_textures: See there.
        is_room: See there.
        wall_height: See there.
        targets: See there.
        target_colors: See there.
        target_height: See there.
        current: See there.
        atlas: See there.
        tables: See there.
        border: See there.
        is_stale: [environments] is filled.
        images: See there.
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
    """Draws the stale pictures and their borders.

    Args:
        rows: The environments that are left; see `kernels.claim`.
        position: [environments, 5]; see `spans.draw_view`, as for the next ones.
        wall_textures: [environments, n, n].
        is_room: [environments, n, n].
        wall_height: In metres.
        targets: [environments, targets, 2].
        target_colors: [environments, targets, 3].
        target_height: In metres.
        current: [environments] the targets whose colours the borders show.
        atlas: The textures.
        tables: What depends on the picture's size alone.
        border: Its width in pixels.
        is_stale: [environments] is cleared.
        images: [environments, side, side, 3] is filled where it is stale.
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
