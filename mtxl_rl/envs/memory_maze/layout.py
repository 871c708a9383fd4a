"""The mazes of a seed, as the original draws them, and what an episode adds to one.

The original draws from one `RandomState(seed)`. First it draws a seed for the mazes' generator
(`text_maze.py`). Then it draws for each episode the textures, the shuffle of the places for
spheres, the current target, the spawn, the heading. The textures are one for the wall '*' (a choice
of one) and one for each of '0' .. '9' (of eight). With fewer places than spheres, textures and
places are drawn again. A new current target is drawn when one is reached. `tests/envs/memory_maze`
compares all of it with the original.

Two faults of the original change what a seed gives, and are kept unless `original_quirks` is off:

- the first heading is drawn around the longest of ten rays, and these still meet the walker's ball
  at the origin, where the model was compiled;
- a sphere at the origin counts as touched in the first step, for the same reason.

Rows count from the top, and y is up. Cell (row, column) of a grid of n cells has its centre
at x = 2 (column - (n - 1) / 2), y = -2 (row - (n - 1) / 2) metres.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int16, UInt8
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import kernel
from mtxl_rl.envs.memory_maze.maze_sizes import MAX_NUM_TARGETS, MazeSize
from mtxl_rl.envs.memory_maze.spec import BALL_RADIUS, CELL, TARGET_RADIUS
from mtxl_rl.envs.memory_maze.text_maze import (
    OBJECT,
    SPAWN,
    WALL,
    TextMaze,
    TextMazeGenerator,
    TextMazeSettings,
)
from mtxl_rl.envs.memory_maze.texture_files import WALL_TEXTURES

FREE = 255
"""Value of a cell without wall, in a grid of wall blocks or wall textures."""
_NUM_WALL_CHARACTERS = 10  # '0' .. '9'; the blocks of 3 x 3 use the first nine.
_NUM_RAYS = 10
_RAY_HEIGHT = 0.1
_NO_HIT = 1e30


class Maze(NamedTuple):
    """A maze as the engine takes it; n is the number of cells on a side with the outer wall."""

    wall_block: UInt8[np.ndarray, "n n"]
    """Which of 3 x 3 blocks a wall cell lies in (its texture is shared), or `FREE`."""
    is_room: UInt8[np.ndarray, "n n"]
    """1 where the floor is a room's, 0 in corridors."""
    box_of_cell: Int16[np.ndarray, "n n"]
    """The wall box that covers a cell, or -1."""
    boxes: UInt8[np.ndarray, "boxes 4"]
    """First row, first column, end row, end column (exclusive) of each collision box, in the
    order of the original's geoms."""
    target_cells: NDArray[np.uint8]
    """[places, 2]: (row, column) of where spheres may lie, in reading order."""
    spawn_cells: NDArray[np.uint8]
    """[spawns, 2]: (row, column) of where the walker may start, in reading order."""


class EpisodeLayout(NamedTuple):
    """A maze with everything that an episode draws."""

    maze: Maze
    wall_texture: UInt8[np.ndarray, "n n"]
    """Index into `WALL_TEXTURES`, or `FREE`."""
    targets: Float64[np.ndarray, "targets 2"]
    """Centres of the spheres, x and y in metres."""
    colors: UInt8[np.ndarray, " targets"]
    """Index of each sphere's colour in `TARGET_COLORS`."""
    current: int
    """The sphere that is asked for."""
    touched_at_start: int
    """Bit k is set if sphere k counts as touched in the first step, wherever the walker is."""
    spawn: tuple[float, float]
    heading: float
    """Radians, counter-clockwise from the x axis, in (-pi, pi]."""


def cell_centers(cells: NDArray[Any], *, grid: int) -> NDArray[np.float64]:
    """Metres [k, 2] (x, y) of cells [k, 2] (row, column)."""
    offset = (grid - 1) / 2
    rows, columns = cells[:, 0], cells[:, 1]
    return np.stack([(columns - offset) * CELL, (offset - rows) * CELL], axis=1).astype(np.float64)


def spawn_height(heading: float) -> float:
    """Height above rest at which a walker starts: 0 but for MuJoCo's rounding, 1e-16 m.

    It decides whether the ball touches the floor in the first substep, which moves it by 1e-6 to
    6e-4 m; walks that scrape along walls make centimetres of that.
    """
    c, s = math.cos(-heading / 2), -math.sin(-heading / 2)  # the joint turns about -z
    half = 0.7071067811865475  # the head is turned by -90 degrees
    w, z = half * c + half * s, half * s - half * c
    return (0.6 - 0.4 * (w * w + z * z)) - BALL_RADIUS


def maze_settings(size: MazeSize) -> TextMazeSettings:
    """The settings with which the original makes the mazes of a size."""
    return TextMazeSettings(
        side=size.grid,
        max_rooms=size.max_rooms,
        room_min_side=3,
        room_max_side=size.room_max_side,
        objects_per_room=size.objects_per_room,
    )


def lay_out(text_maze: TextMaze, *, grid: int) -> Maze:
    """A maze with its walls in blocks and boxes, in the middle of `grid` x `grid` cells."""
    margin = (grid - len(text_maze.cells)) // 2
    cells = np.pad(text_maze.cells, margin, constant_values=WALL)
    rooms = np.pad(text_maze.rooms, margin)
    wall_block = np.where(cells == WALL, _blocks(len(cells)), np.uint8(FREE))
    box_of_cell = np.full(cells.shape, -1, np.int16)
    boxes = np.empty((cells.size, 4), np.uint8)
    num_boxes = cover_walls(wall_block, box_of_cell, boxes)
    return Maze(
        wall_block=wall_block,
        is_room=(rooms > 0).astype(np.uint8),
        box_of_cell=box_of_cell,
        boxes=boxes[:num_boxes].copy(),
        target_cells=np.argwhere(cells == OBJECT).astype(np.uint8),
        spawn_cells=np.argwhere(cells == SPAWN).astype(np.uint8),
    )


@functools.cache
def _blocks(grid: int) -> NDArray[np.uint8]:
    """The block, 0 .. 8 in reading order, of each cell; the original splits a side into thirds."""
    third = np.searchsorted([1 * grid // 3, 2 * grid // 3], np.arange(grid), side="right")
    return (third[:, None] * 3 + third[None, :]).astype(np.uint8)


@kernel
def cover_walls(
    wall_block: NDArray[np.uint8], box_of_cell: NDArray[np.int16], boxes: NDArray[np.uint8]
) -> int:
    """Cover the walls of each block with boxes of odd sides; return how many.

    Boxes touch but do not overlap. Each starts at its block's first uncovered cell in reading
    order. Of the heights 1, 3, 5, ... it takes the first that gives the largest area; each further
    row may only narrow the box. The choice of boxes matters: the ball touches each of them
    separately.

    Args:
        wall_block: [n, n] block of each wall cell, or `FREE`.
        box_of_cell: [n, n] is filled with each wall cell's box; must come filled with -1.
        boxes: [at least the number of boxes, 4] is filled; see `Maze.boxes`.
    """
    n = wall_block.shape[0]
    count = 0
    for block in range(9):
        for row in range(n):
            for column in range(n):
                if wall_block[row, column] != block or box_of_cell[row, column] >= 0:
                    continue
                end_row, end_column = _fit_box(row, column, wall_block, box_of_cell)
                box_of_cell[row:end_row, column:end_column] = count
                boxes[count, 0], boxes[count, 1] = row, column
                boxes[count, 2], boxes[count, 3] = end_row, end_column
                count += 1
    return count


@kernel
def _fit_box(
    row: int, column: int, wall_block: NDArray[np.uint8], box_of_cell: NDArray[np.int16]
) -> tuple[int, int]:
    """End row and end column of the box that starts at a cell."""
    n = wall_block.shape[0]
    block = wall_block[row, column]
    end, best_area, best_row, best_column = n, 0, row, column
    for y in range(row, n):
        x = column
        while x < end and wall_block[y, x] == block and box_of_cell[y, x] < 0:
            x += 1
        if x == column:
            break
        end = x if (x - column) % 2 == 1 else x - 1
        num_rows = y - row + 1
        if num_rows % 2 == 1 and (end - column) * num_rows > best_area:
            best_area = (end - column) * num_rows
            best_row, best_column = y + 1, end
    return best_row, best_column


class EpisodeStream:
    """The episodes of one seed.

    Args:
        size: The mazes' size.
        grid: Cells on a side of the grid in whose middle they lie; `size.grid` for the original.
        seed: As the original takes it, from 0 to 2**32 - 1.
        target_height: Of the spheres' centres in metres: the rays may meet them.
        randomize_colors: Shuffle all six colours for each episode.
        original_quirks: Keep the two faults of the original.
    """

    __slots__ = (
        "_colors",
        "_grid",
        "_mazes",
        "_original_quirks",
        "_random",
        "_randomize_colors",
        "_size",
        "_target_height",
        "_touched",
    )

    def __init__(
        self,
        size: MazeSize,
        *,
        grid: int,
        seed: int,
        target_height: float,
        randomize_colors: bool,
        original_quirks: bool,
    ) -> None:
        self._size = size
        self._grid = grid
        self._target_height = target_height
        self._randomize_colors = randomize_colors
        self._original_quirks = original_quirks
        self._random = np.random.RandomState(seed)
        seed_of_mazes = int(self._random.randint(2**31))
        self._mazes = TextMazeGenerator(maze_settings(size), seed=seed_of_mazes)
        self._mazes.next_maze()  # The original makes a maze at construction that it never uses.
        self._colors = list(range(MAX_NUM_TARGETS))
        # Spheres that count as touched while the next target is drawn.
        self._touched = 0

    def next_episode(self) -> EpisodeLayout:
        """Draw the next episode."""
        num_targets = self._size.num_targets
        maze, textures = self._draw_maze()
        while True:
            if self._randomize_colors:
                self._random.shuffle(self._colors)
                self._touched = 0
            places = list(range(len(maze.target_cells)))
            self._random.shuffle(places)
            if len(places) >= num_targets:
                break
            maze, textures = self._draw_maze()
        targets = cell_centers(maze.target_cells[places[:num_targets]], grid=self._grid)
        current = self.draw_target(self._touched)
        spawn, heading = self._draw_pose(maze, targets)
        is_at_origin = ~targets.any(axis=1) & self._original_quirks
        self._touched = sum(1 << int(index) for index in np.flatnonzero(is_at_origin))
        return EpisodeLayout(
            maze=maze,
            wall_texture=np.where(maze.wall_block == FREE, FREE, textures[maze.wall_block % 10]),
            targets=targets,
            colors=np.array(self._colors[:num_targets], np.uint8),
            current=current,
            touched_at_start=self._touched,
            spawn=spawn,
            heading=heading,
        )

    def first_step_is_over(self) -> None:
        """Spheres that counted as touched from the start no longer do."""
        self._touched = 0

    def draw_target(self, touched: int) -> int:
        """A new current target: any sphere whose bit in `touched` is not set."""
        while True:
            index = int(self._random.randint(self._size.num_targets))
            if not touched >> index & 1:
                return index

    def _draw_maze(self) -> tuple[Maze, NDArray[np.uint8]]:
        """The next maze and the textures [10] of its blocks."""
        maze = lay_out(self._mazes.next_maze(), grid=self._grid)
        self._random.randint(1)  # the wall '*', of which nothing is left
        num_textures = len(WALL_TEXTURES)
        textures = self._random.randint(num_textures, size=_NUM_WALL_CHARACTERS)
        return maze, textures.astype(np.uint8)

    def _draw_pose(
        self, maze: Maze, targets: NDArray[np.float64]
    ) -> tuple[tuple[float, float], float]:
        index = self._random.randint(len(maze.spawn_cells))
        spawns = cell_centers(maze.spawn_cells[index : index + 1], grid=self._grid)
        x, y = float(spawns[0, 0]), float(spawns[0, 1])
        spheres = [(*target, self._target_height, TARGET_RADIUS) for target in targets]
        if self._original_quirks:
            spheres.append((0.0, 0.0, BALL_RADIUS, BALL_RADIUS))
        angles = 2 * np.pi * np.arange(_NUM_RAYS) / _NUM_RAYS
        longest = int(np.argmax(ray_lengths(x, y, angles, maze.wall_block, np.array(spheres))))
        # The original's remap of the draw is tanh(arctanh(u)), which is u but for rounding.
        turn = np.tanh(np.arctanh(self._random.uniform(-1, 1)))
        angle = angles[longest] + np.pi * (1 + turn)
        # By way of the quaternion of the turn about z, as the original does.
        w, z = np.cos(angle / 2), np.sin(angle / 2)
        return (x, y), -float(np.arctan2(2 * w * z, 1 - 2 * z * z))

    def get_state(self) -> dict[str, Any]:
        """The stream's state: both generators' words, and what the next episode depends on."""
        _, words, position, _, _ = self._random.get_state(legacy=True)
        return {
            "mazes": self._mazes.state.copy(),
            "colors": np.array(self._colors, np.uint8),
            "touched": self._touched,
            "words": np.array(words, np.uint32),
            "position": int(position),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `get_state`."""
        self._mazes.state = np.array(state["mazes"], np.uint64)
        self._colors = [int(color) for color in state["colors"]]
        self._touched = int(state["touched"])
        words = np.asarray(state["words"], np.uint32)
        self._random.set_state(("MT19937", words, int(state["position"]), 0, 0.0))


@kernel
def ray_lengths(
    x: float,
    y: float,
    angles: NDArray[np.float64],
    wall_block: NDArray[np.uint8],
    spheres: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Length of horizontal rays from (x, y), 0.1 m above the floor, to a wall or sphere.

    Args:
        x: Metres.
        y: Metres.
        angles: [rays] radians.
        wall_block: [n, n], `FREE` where no wall is.
        spheres: [spheres, 4]: x, y, z of the centre, radius.
    """
    n = wall_block.shape[0]
    lengths = np.empty(len(angles))
    for ray in range(len(angles)):
        dx, dy = np.cos(angles[ray]), np.sin(angles[ray])
        # In cells, rows down. The walls: from cell border to cell border.
        column, row = int(x / CELL + n / 2), int(n / 2 - y / CELL)
        to_column = (column + (dx > 0) - (x / CELL + n / 2)) / dx * CELL if dx != 0 else _NO_HIT
        to_row = (row + (dy < 0) - (n / 2 - y / CELL)) / -dy * CELL if dy != 0 else _NO_HIT
        length = 0.0
        while wall_block[row, column] == FREE:
            if to_column < to_row:
                length = to_column
                to_column += abs(CELL / dx)
                column += 1 if dx > 0 else -1
            else:
                length = to_row
                to_row += abs(CELL / dy)
                row += -1 if dy > 0 else 1
        # |origin + t (dx, dy, 0) - centre| = radius; from inside, the far side counts.
        a = dx * dx + dy * dy
        for k in range(len(spheres)):
            ox, oy, oz = x - spheres[k, 0], y - spheres[k, 1], _RAY_HEIGHT - spheres[k, 2]
            b = dx * ox + dy * oy
            determinant = b * b - a * (ox * ox + oy * oy + oz * oz - spheres[k, 3] ** 2)
            if determinant < 1e-15:
                continue
            near, far = (-b - np.sqrt(determinant)) / a, (-b + np.sqrt(determinant)) / a
            hit = near if near >= 0 else far
            if hit >= 0:
                length = min(length, hit)
        lengths[ray] = length
    return lengths
