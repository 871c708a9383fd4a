"""Additions to the view: the border, the extra observations, the oracle's path and map."""

import math

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import inlined, kernel
from mtxl_rl.envs.memory_maze.layout import FREE
from mtxl_rl.envs.memory_maze.spec import CELL

FLOOR, PATH = 1, 2
"""Values of a maze layout, in addition to 0, a wall."""
_BORDER_LIGHT = 0.7


def border_width(side: int) -> int:
    """Pixels of the border of a picture of `side` pixels."""
    return int(2 * math.sqrt(side // 64))


@inlined
def draw_border(image: NDArray[np.uint8], width: int, color: NDArray[np.float32]) -> None:
    """Frame a picture [side, side, 3] in a target's colour [3] of 0 to 255, darkened."""
    side = image.shape[0]
    for k in range(3):
        value = np.uint8(color[k] * _BORDER_LIGHT)
        image[:width, :, k] = value
        image[side - width :, :, k] = value
        image[width : side - width, :width, k] = value
        image[width : side - width, side - width :, k] = value


def maze_layouts(wall_textures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The floor inside the outer wall, [B, n - 2, n - 2], row 0 at the bottom."""
    inside = wall_textures[:, 1:-1, 1:-1] == FREE
    return np.ascontiguousarray(inside[:, ::-1]).astype(np.uint8) * np.uint8(FLOOR)


def grid_positions(xy: NDArray[np.float64], *, grid: int) -> NDArray[np.float64]:
    """Convert metres [..., 2] to cells from the bottom left corner inside the outer wall."""
    return xy / CELL + (grid - 2) / 2


def egocentric(
    xy: NDArray[np.float64], *, origin: NDArray[np.float64], heading: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Positions of points [B, k, 2] relative to walkers [B, 2]: (right, ahead) in cells."""
    offset = (xy - origin[:, None]) / CELL
    cos, sin = np.cos(heading)[:, None], np.sin(heading)[:, None]
    right = sin * offset[..., 0] - cos * offset[..., 1]
    ahead = cos * offset[..., 0] + sin * offset[..., 1]
    return np.stack([right, ahead], axis=-1)


@kernel
def draw_paths(
    first: int,
    last: int,
    layouts: NDArray[np.uint8],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
) -> None:
    """Mark a shortest path in each layout [B, side, side]; starts and ends [B, 2] in cells."""
    side = layouts.shape[1]
    # The step by which each cell was reached, in the order in which the original tries them.
    steps = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    queue = np.empty((side * side, 2), np.int64)
    came_by = np.empty((side, side), np.int64)
    for e in range(first, last):
        layout = layouts[e]
        start_x, start_y = int(starts[e, 0]), int(starts[e, 1])
        came_by[:, :] = -1
        came_by[start_y, start_x] = 4
        queue[0, 0], queue[0, 1] = start_x, start_y
        head, tail = 0, 1
        while head < tail:
            for k in range(4):
                x, y = queue[head, 0] + steps[k, 0], queue[head, 1] + steps[k, 1]
                inside = 0 <= x < side and 0 <= y < side
                if inside and layout[y, x] != 0 and came_by[y, x] < 0:
                    came_by[y, x] = k
                    queue[tail, 0], queue[tail, 1] = x, y
                    tail += 1
            head += 1
        x, y = int(ends[e, 0]), int(ends[e, 1])
        if came_by[y, x] < 0:
            continue
        while came_by[y, x] < 4:
            layout[y, x] = PATH
            step = came_by[y, x]
            x, y = x - steps[step, 0], y - steps[step, 1]
        layout[y, x] = PATH


@kernel
def draw_maps(
    first: int,
    last: int,
    layouts: NDArray[np.uint8],
    positions: NDArray[np.float64],
    headings: NDArray[np.float64],
    images: NDArray[np.uint8],
) -> None:
    """Blend a map, two pixels a cell, into each picture's upper right corner.

    The walker is in the map's middle and looks up. The map is scaled by two, moved and then turned,
    each time with the nearest pixel, as the original does.

    Args:
        first: First environment.
        last: Index after the last environment.
        layouts: [environments, cells, cells], row 0 at the bottom.
        positions: [environments, 2] positions of the walkers in cells.
        headings: [environments] radians.
        images: [environments, side, side, 3] is drawn into.
    """
    cells = layouts.shape[1]
    size = 2 * cells
    for e in range(first, last):
        shift_x = (positions[e, 0] - cells / 2) / cells * size
        shift_y = -(positions[e, 1] - cells / 2) / cells * size
        walker_x, walker_y = int(positions[e, 0]), int(positions[e, 1])
        turn = math.pi / 2 - headings[e]
        cos, sin = math.cos(turn), math.sin(turn)
        for y in range(size):
            for x in range(size):
                dx, dy = x + 0.5 - cells, y + 0.5 - cells
                turned_x = math.floor(cos * dx - sin * dy + cells)
                turned_y = math.floor(sin * dx + cos * dy + cells)
                red = green = blue = 0
                if 0 <= turned_x < size and 0 <= turned_y < size:
                    column = math.floor(turned_x + 0.5 + shift_x) // 2
                    row = cells - 1 - math.floor(turned_y + 0.5 + shift_y) // 2
                    is_walker = column == walker_x and row == walker_y
                    red, green, blue = _map_color(layouts[e], column, row, is_walker)
                pixel = images[e, y, images.shape[2] - size + x]
                pixel[0] = pixel[0] // 2 + red // 2
                pixel[1] = pixel[1] // 2 + green // 2
                pixel[2] = pixel[2] // 2 + blue // 2


@inlined
def _map_color(
    layout: NDArray[np.uint8], column: int, row: int, is_walker: bool
) -> tuple[int, int, int]:
    """Red, green, blue of a cell of the map; black outside."""
    cells = layout.shape[0]
    if is_walker:
        return 255, 0, 0
    if not (0 <= column < cells and 0 <= row < cells):
        return 0, 0, 0
    if layout[row, column] == PATH:
        return 0, 255, 0
    light = 255 if layout[row, column] == FLOOR else 0
    return light, light, light
