"""GridMemoryMaze: Memory Maze on a grid, with the same mazes and the same task, without 3D.

Rules: each episode has a new maze with one object in each of `num_objects` rooms; the agent starts
in any room. When it enters the cell of the prompted object, another object is prompted, each with
equal probability. Other objects do nothing, and no object blocks the way.
Source: Pasukonis et al. (2022), "Evaluating Long-Term Memory in 3D Mazes",
https://arxiv.org/abs/2210.13383, whose settings the mazes have. The grid is ours.
Observation: [for each of the 5 x 5 cells around the agent, row by row, turned so that ahead is up:
wall, objects one-hot; prompted object one-hot]. Walls do not block the view.
Action: 0 nothing, 1 turn left, 2 turn right, 3 forward.
Reward: 1 for entering the prompted object's cell.
Episode length: 1,000 to 4,000 steps by size; the end is a truncation. `success` is always 0: the
return measures the agent. `ShortestPaths` is a perfect agent that knows the maze.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.drawing import (
    DARK,
    GRAY,
    PALETTE,
    WHITE,
    Image,
    add_border,
    draw_cells,
)
from mtxl_rl.envs.tasks.vector_task import Flags, Outcome, TaskDescription, VectorTask, check_choice
from mtxl_rl.envs.tasks.walker import FORWARD, LEFT, NUM_HEADINGS, RIGHT

VIEW = 5
"""Cells on a side of the agent's view."""
_REACH = VIEW // 2
_FREE, _WALL, _FIRST_OBJECT = 0, 1, 2


class Size(NamedTuple):
    """A size of Memory Maze."""

    cells: int
    """Cells on a side, without outer walls."""
    num_objects: int
    num_steps: int
    max_rooms: int
    room_max_size: int

    @property
    def stride(self) -> int:
        """Cells on a side of `world`, with outer walls and a rim as wide as the view reaches."""
        return self.cells + 2 + 2 * _REACH


SIZES = {
    "9x9": Size(9, 3, 1000, 6, 5),
    "11x11": Size(11, 4, 2000, 6, 5),
    "13x13": Size(13, 5, 3000, 6, 5),
    "15x15": Size(15, 6, 4000, 9, 3),
}


@dataclass(kw_only=True, slots=True)
class GridMemoryMazeConfig:
    """Options of ``env=GridMemoryMaze``."""

    name: str = "GridMemoryMaze"
    """The environment's name in the registry."""
    size: str = "9x9"
    """9x9, 11x11, 13x13 or 15x15: 3 to 6 objects, 1,000 to 4,000 steps."""

    def __post_init__(self) -> None:
        check_choice("size", self.size, choices=tuple(SIZES))

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return SIZES[self.size].num_steps

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        size = SIZES[self.size]
        return TaskDescription(
            horizon=self.steps_per_episode,
            # Objects lie in different rooms, so each takes at least two steps.
            reward_range=(0.0, self.steps_per_episode / 2),
            remembered=f"a maze and where {size.num_objects} objects lie in it",
            memory_window=self.steps_per_episode - 1,
        )


class GridMemoryMaze(VectorTask):
    """Memory Maze on a grid; see the module's docstring."""

    state_names = ("world", "objects", "cell", "heading", "prompt")

    def __init__(
        self, config: GridMemoryMazeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.size = SIZES[config.size]
        num_objects, stride = self.size.num_objects, self.size.stride
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(
                0.0, 1.0, (VIEW**2 * (1 + num_objects) + num_objects,), np.float32
            ),
            num_actions=4,
        )
        self.world = np.full((num_envs, stride**2), _WALL, dtype=np.int8)
        """Content of each cell (row * stride + column): 0 nothing, 1 wall, 2 .. an object."""
        self.objects = np.zeros((num_envs, num_objects), dtype=np.int64)
        """Each object's cell."""
        self.cell = np.full(num_envs, _REACH * stride + _REACH)
        """The agent's cell."""
        self.heading = np.zeros(num_envs, dtype=np.int64)
        """The agent's heading: north, west, south, east."""
        self.prompt = np.zeros(num_envs, dtype=np.int64)
        """The prompted object."""
        self.ahead = np.array([-stride, -1, stride, 1])
        """Offset of the cell ahead, by heading."""
        self._first_cell = (self.all_rows * stride**2)[:, None]
        self._view = _view_offsets(stride)
        self._one_hot = np.eye(2 + num_objects, dtype=np.float32)[:, 1:]

    def _start(self, rows: Rows) -> None:
        num_objects = self.size.num_objects
        draws = self.streams.uniform(rows, 4)
        self.heading[rows] = np.floor(draws[:, 1] * NUM_HEADINGS)
        self.prompt[rows] = np.floor(draws[:, 2] * num_objects)
        for row, (seed, _, _, spawn) in zip(rows, draws, strict=True):
            world, rooms, spawns = self._lay_out(1 + int(seed * (2**31 - 2)))
            self.world[row] = world
            order = self.streams.permutations(np.array([row]), len(rooms))[0]
            self.objects[row] = rooms[order[:num_objects]]
            self.world[row, self.objects[row]] = _FIRST_OBJECT + np.arange(num_objects)
            self.cell[row] = spawns[int(spawn * len(spawns))]

    def _lay_out(self, seed: int) -> tuple[NDArray[np.int8], NDArray[Any], NDArray[Any]]:
        """Return the walls, one cell in each room for an object, and one in each for the agent."""
        # Imported here because numba takes a moment.
        from mtxl_rl.envs.memory_maze.text_maze import (
            OBJECT,
            SPAWN,
            WALL,
            TextMazeGenerator,
            TextMazeSettings,
        )

        settings = TextMazeSettings(
            side=self.size.cells + 2,
            max_rooms=self.size.max_rooms,
            room_min_side=3,
            room_max_side=self.size.room_max_size,
        )
        mazes = TextMazeGenerator(settings, seed=seed)
        cells = mazes.next_maze().cells
        while (cells == OBJECT).sum() < self.size.num_objects:
            cells = mazes.next_maze().cells
        cells = np.pad(cells, _REACH, constant_values=WALL).ravel()
        walls = np.where(cells == WALL, _WALL, _FREE).astype(np.int8)
        return walls, np.flatnonzero(cells == OBJECT), np.flatnonzero(cells == SPAWN)

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        self.heading = (self.heading + (actions == LEFT) - (actions == RIGHT)) % NUM_HEADINGS
        ahead = self.cell + self.ahead[self.heading]
        moves = live & (actions == FORWARD) & (self.world[self.all_rows, ahead] != _WALL)
        self.cell = np.where(moves, ahead, self.cell)
        touches = moves & (self.cell == self.objects[self.all_rows, self.prompt])
        rows = np.flatnonzero(touches)
        if rows.size:
            others = self.size.num_objects - 1
            step = 1 + self.streams.integers(rows, others, 1)[:, 0]
            self.prompt[rows] = (self.prompt[rows] + step) % self.size.num_objects
        out_of_time = self.step_index + 1 >= self.size.num_steps
        never = np.zeros_like(touches)
        return Outcome(touches, never, out_of_time, never)

    def _observe(self) -> NDArray[np.float32]:
        cells = self._first_cell + self.cell[:, None] + self._view[self.heading]
        seen = self.world.take(cells)
        num_seen = VIEW**2 * (1 + self.size.num_objects)
        observations = np.zeros((self.num_envs, num_seen + self.size.num_objects), np.float32)
        one_hot = self._one_hot.take(seen, axis=0)
        observations[:, :num_seen] = one_hot.reshape(self.num_envs, num_seen)
        observations[self.all_rows, num_seen + self.prompt] = 1
        return observations

    def _draw(self, row: int) -> Image:
        """The maze, dark where the agent does not see it, framed in the prompted object's colour.

        The agent is white, and a white mark lies on the cell ahead.
        """
        stride = self.size.stride
        palette = np.array([DARK, GRAY, *PALETTE], dtype=np.uint8)
        colors = palette[self.world[row]] // 2
        in_view = self.cell[row] + self._view[self.heading[row]]
        colors[in_view] = palette[self.world[row, in_view]]
        colors[self.cell[row]] = WHITE
        ahead_row, ahead_column = divmod(
            int(self.cell[row] + self.ahead[self.heading[row]]), stride
        )
        grid = colors.reshape(stride, stride, 3)
        image = draw_cells(grid, marks=[(ahead_row, ahead_column, WHITE)])
        return add_border(image, PALETTE[self.prompt[row]])


class ShortestPaths:
    """A perfect agent of `GridMemoryMaze` that knows the maze and its objects.

    It takes the fewest turns and steps to the prompted object. Its mean returns in 32 mazes of each
    size are 93, 150, 199 and 235, an upper bound for agents.
    """

    def __init__(self, env: GridMemoryMaze) -> None:
        self.env = env
        self._world = np.zeros_like(env.world)
        shape = (env.num_envs, env.size.num_objects, NUM_HEADINGS, env.world.shape[1])
        self._steps = np.zeros(shape, dtype=np.int32)

    def actions(self) -> NDArray[np.int64]:
        """Return the next action of each environment, [B]."""
        env = self.env
        changed = np.flatnonzero((self._world != env.world).any(axis=1))
        if changed.size:
            self._world[changed] = env.world[changed]
            self._steps[changed] = self._count_steps(changed)
        steps = self._steps[env.all_rows, env.prompt]
        ahead = env.cell + env.ahead[env.heading]
        left, right = (env.heading + 1) % NUM_HEADINGS, (env.heading - 1) % NUM_HEADINGS
        # Walls have a larger number of steps than any path.
        by_action = [
            steps[env.all_rows, left, env.cell],
            steps[env.all_rows, right, env.cell],
            steps[env.all_rows, env.heading, ahead],
        ]
        return LEFT + np.argmin(by_action, axis=0)

    def _count_steps(self, rows: Rows) -> NDArray[np.int32]:
        """Return turns and steps to each object by heading and cell, [rows, objects, 4, cells]."""
        env = self.env
        far = np.int32(4 * env.world.shape[1])
        steps = np.full((len(rows), *self._steps.shape[1:]), far)
        local, which = np.indices((len(rows), env.size.num_objects))
        is_wall = (env.world[rows] == _WALL)[:, None, None]
        while True:
            steps[local, which, :, env.objects[rows]] = 0
            ahead = np.stack(
                [np.roll(steps[:, :, h], -env.ahead[h], axis=-1) for h in range(NUM_HEADINGS)],
                axis=2,
            )
            turned = np.minimum(np.roll(steps, 1, axis=2), np.roll(steps, -1, axis=2))
            shorter = np.where(is_wall, far, np.minimum(steps, np.minimum(ahead, turned) + 1))
            if (shorter == steps).all():
                return steps
            steps = shorter


def _view_offsets(stride: int) -> NDArray[np.int64]:
    """Return the offset of each cell in view, [headings, 25]; cells ahead come first."""
    grid = np.arange(-_REACH, _REACH + 1)
    north = grid[:, None] * stride + grid
    # Facing west, the cells ahead are to the left: rows of the view are columns of the world.
    return np.stack([np.rot90(north, -turns).ravel() for turns in range(NUM_HEADINGS)])
