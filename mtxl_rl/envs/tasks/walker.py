"""Memory Gym's agent on a grid: its turns and steps, and its pictures of 84 x 84 pixels.

Source: Pleines et al. (2023), "Memory Gym: Partially Observable Challenges to Memory-Based Agents",
https://openreview.net/forum?id=jHc8dCx6DDr, and the grid controller of memory-gym 1.0.2. Pictures
are drawn in NumPy with the same shapes and colours; edges of discs and lines differ by pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows

VIEWS = ("symbolic", "image")
"""Kinds of observations: a vector, or a picture."""
SIDE = 84
"""Pixels on a picture's side."""
LEFT, RIGHT, FORWARD = 1, 2, 3
"""Actions; 0 does nothing."""
NUM_HEADINGS = 4
"""North, west, south, east: a turn to the left adds one."""
_HEADING_STEPS = ((0, -1), (-1, 0), (0, 1), (1, 0))
"""Columns and rows of a step forward, by heading."""


def step_table(steps: Sequence[tuple[int, int]], *, size: int) -> NDArray[np.int64]:
    """Return the cell (column * size + row) after each step from each cell, [cells, steps].

    Columns and rows are clipped to the grid.
    """
    cells = np.stack(np.divmod(np.arange(size**2), size), axis=1)
    moved = np.clip(cells[:, None] + np.array(steps), 0, size - 1)
    table: NDArray[np.int64] = moved[:, :, 0] * size + moved[:, :, 1]
    return table


class Floor:
    """A grid of cells on which agents walk.

    Args:
        size: Cells on a side.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._ahead = step_table(_HEADING_STEPS, size=size)

    def walk(
        self, cell: NDArray[np.int64], heading: NDArray[np.int64], actions: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return cells and headings after the actions, each [B]; steps off the grid do nothing."""
        heading = (heading + (actions == LEFT) - (actions == RIGHT)) % NUM_HEADINGS
        return np.where(actions == FORWARD, self._ahead[cell, heading], cell), heading

    def centres(self, cell: NDArray[np.int64], *, pixels: int) -> NDArray[np.int64]:
        """Return the centres of cells that are `pixels` wide in a picture, [B, 2], column first."""
        margin = (SIDE - self.size * pixels) // 2
        columns_and_rows = np.stack(np.divmod(cell, self.size), axis=1)
        centres: NDArray[np.int64] = margin + pixels // 2 + pixels * columns_and_rows
        return centres


class Sprite(NamedTuple):
    """Pixels of a small picture, relative to its centre."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    colours: NDArray[np.uint8]


def stamp(
    images: NDArray[np.uint8], rows: Rows, *, centres: NDArray[np.int64], sprite: Sprite
) -> None:
    """Paint a sprite into the images [B, H, W, 3] of `rows`; pixels outside are cut off.

    `centres` [len(rows), 2] holds column and row.
    """
    down = centres[:, 1, None] + sprite.rows
    across = centres[:, 0, None] + sprite.columns
    inside = (down >= 0) & (down < SIDE) & (across >= 0) & (across < SIDE)
    image, pixel = np.nonzero(inside)
    images[rows[image], down[inside], across[inside]] = sprite.colours[pixel]


def stamp_agents(
    images: NDArray[np.uint8], *, centres: NDArray[np.int64], heading: NDArray[np.int64]
) -> None:
    """Paint the agent into every image."""
    for which, sprite in enumerate(AGENTS):
        rows = np.flatnonzero(heading == which)
        stamp(images, rows, centres=centres[rows], sprite=sprite)


def _sprite(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Sprite:
    """Return the true pixels of a square mask in one colour."""
    rows, columns = np.nonzero(mask)
    half = len(mask) // 2
    colours = np.tile(np.array(colour, dtype=np.uint8), (len(rows), 1))
    return Sprite(rows - half, columns - half, colours)


def _over(*sprites: Sprite) -> Sprite:
    """Return sprites painted over each other, the last on top."""
    pixels = {
        (row, column): colour
        for sprite in sprites
        for row, column, colour in zip(*(part.tolist() for part in sprite), strict=True)
    }
    places = np.array(list(pixels))
    return Sprite(places[:, 0], places[:, 1], np.array(list(pixels.values()), dtype=np.uint8))


def _disc(side: int, *, column: int, row: int, radius: int) -> NDArray[np.bool_]:
    down, across = np.mgrid[:side, :side] + 0.5
    inside: NDArray[np.bool_] = np.hypot(down - row, across - column) <= radius
    return inside


def _line(side: int, start: tuple[int, int], end: tuple[int, int], width: int) -> NDArray[np.bool_]:
    """Return a mask of the pixels within half the width of a line between (column, row) points."""
    down, across = np.mgrid[:side, :side]
    first, last = np.array(start), np.array(end)
    way = last - first
    share = ((across - first[0]) * way[0] + (down - first[1]) * way[1]) / (way @ way)
    share = np.clip(share, 0, 1)
    distance = np.hypot(across - first[0] - share * way[0], down - first[1] - share * way[1])
    near: NDArray[np.bool_] = distance <= width / 2
    return near


def _arrow() -> NDArray[np.bool_]:
    """Return an arrow to the right."""
    lines = [((0, 10), (20, 10)), ((20, 10), (10, 0)), ((20, 10), (10, 20))]
    return np.any([_line(22, start, end, 2) for start, end in lines], axis=0)


def _stop() -> NDArray[np.bool_]:
    """Return a circle with a bar."""
    ring = _disc(22, column=10, row=10, radius=10) & ~_disc(22, column=10, row=10, radius=8)
    return ring | _line(22, (0, 9), (19, 9), 2)


def _agent(heading: int) -> Sprite:
    body = _disc(28, column=14, row=14, radius=6)
    hands = _disc(28, column=10, row=10, radius=2) | _disc(28, column=18, row=10, radius=2)
    return _over(
        _sprite(np.rot90(body, heading), (250, 204, 153)),
        _sprite(np.rot90(hands, heading), (50, 50, 50)),
    )


AGENTS = tuple(_agent(heading) for heading in range(NUM_HEADINGS))
"""The agent's picture by heading."""
COMMANDS = tuple(
    _sprite(mask, (255, 255, 255))
    for mask in (*(np.rot90(_arrow(), turns) for turns in (0, 3, 2, 1)), _stop())
)
"""Signs of the commands right, down, left, up and stay."""
CROSS = _sprite(_line(10, (0, 0), (9, 9), 3) | _line(10, (9, 0), (0, 9), 3), (255, 0, 0))
"""The sign shown where the agent fell."""
