"""MysteryPath: find an invisible path by falling off it, and remember it.

Rules: a grid of 7 x 7 cells. A path leads from a cell of one side to a cell of the opposite side;
neither is marked. The agent starts at the path's first cell. On a cell off the path it falls, which
is shown; the next step, whatever its action, moves it back to the start with the same heading.
Source: Pleines et al. (2023), "Memory Gym", https://openreview.net/forum?id=jHc8dCx6DDr. Rules,
paths, rewards and lengths equal MysteryPath-Grid-v0 of memory-gym 1.0.2, except that the end by
time is a truncation here and a termination there.
Observation: with view=symbolic [cell one-hot (column * 7 + row), heading one-hot (north, west,
south, east), whether it fell]; with view=image uint8 [84, 84, 3].
Action: 0 nothing, 1 turn left, 2 turn right, 3 forward.
Reward: 1 for reaching the path's end.
Episode length: until the end is reached (terminated), at most `max_steps` (truncated).

Paths are computed by numba, which is about fifty times faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import BLUE, DARK, GREEN, Image, cells, dim, enlarge
from mtxl_rl.envs.tasks.path_layout import (
    NUM_CELLS,
    NUM_SEARCH_DRAWS,
    NUM_WALL_DRAWS,
    SIZE,
    draw_walls,
    lay_path,
)
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)
from mtxl_rl.envs.tasks.walker import CROSS, NUM_HEADINGS, SIDE, VIEWS, Floor, stamp, stamp_agents

_CELL_PIXELS = SIDE // SIZE


@dataclass(kw_only=True, slots=True)
class MysteryPathConfig:
    """Options of ``env=MysteryPath``."""

    name: str = "MysteryPath"
    """The environment's name in the registry."""
    max_steps: int = 128
    """Steps until the episode is truncated, at least 1."""
    view: str = "symbolic"
    """symbolic: a vector; image: 84 x 84 pixels."""

    def __post_init__(self) -> None:
        check_at_least("max_steps", self.max_steps, least=1, example=128)
        check_choice("env.view", self.view, VIEWS)

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        return TaskDescription(
            horizon=self.max_steps,
            reward_range=(0.0, 1.0),
            remembered="where the path goes, and where it does not",
            memory_window=self.max_steps - 1,
        )


class MysteryPath(VectorTask):
    """Mystery Path on a grid; see the module's docstring."""

    state_names = ("cell", "heading", "start", "end", "is_path", "has_fallen")

    def __init__(
        self, config: MysteryPathConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.is_image = config.view == "image"
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
            if self.is_image
            else spaces.Box(0.0, 1.0, (NUM_CELLS + NUM_HEADINGS + 1,), np.float32),
            num_actions=4,
        )
        self.max_steps = config.max_steps
        self._floor = Floor(SIZE)
        self.cell = np.zeros(num_envs, dtype=np.int64)
        """The agent's cell: column * 7 + row."""
        self.heading = np.zeros(num_envs, dtype=np.int64)
        self.start = np.zeros(num_envs, dtype=np.int64)
        self.end = np.zeros(num_envs, dtype=np.int64)
        self.is_path = np.zeros((num_envs, NUM_CELLS), dtype=np.bool_)
        """Whether each cell is on the path."""
        self.has_fallen = np.zeros(num_envs, dtype=np.bool_)
        """Whether the agent is off the path, and moves back to the start in the next step."""

    def _start(self, rows: Rows) -> None:
        draws = self.streams.uniform(rows, 3)
        side = np.floor(draws[:, 0] * 4).astype(np.int64)
        first, last = np.floor(draws[:, 1:].T * SIZE).astype(np.int64)
        # Sides 0 and 1 lead across columns, 2 and 3 across rows; 1 and 3 lead backwards.
        near, far = np.where(side % 2 == 0, 0, SIZE - 1), np.where(side % 2 == 0, SIZE - 1, 0)
        self.start[rows] = np.where(side < 2, near * SIZE + first, first * SIZE + near)
        self.end[rows] = np.where(side < 2, far * SIZE + last, last * SIZE + far)
        self._lay_paths(rows)
        self.cell[rows] = self.start[rows]
        self.heading[rows] = 0
        self.has_fallen[rows] = False

    def _lay_paths(self, rows: Rows) -> None:
        while rows.size:  # random walls can block every path: then redraw them
            start, end = self.start[rows], self.end[rows]
            draws = self.streams.uniform(rows, NUM_WALL_DRAWS + NUM_SEARCH_DRAWS)
            is_wall = draw_walls(draws[:, :NUM_WALL_DRAWS], start=start, end=end)
            for index, row in enumerate(rows):
                self.is_path[row] = lay_path(
                    draws[index, NUM_WALL_DRAWS:],
                    start=int(start[index]),
                    end=int(end[index]),
                    is_wall=is_wall[index],
                )
            rows = rows[~self.is_path[rows].any(axis=1)]

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        actions = np.where(live & ~self.has_fallen, actions, 0)
        cell, self.heading = self._floor.walk(self.cell, self.heading, actions)
        self.cell = np.where(self.has_fallen, self.start, cell)
        is_done = self.cell == self.end
        self.has_fallen = ~self.is_path[self.all_rows, self.cell]
        out_of_time = ~is_done & (self.step_index + 1 >= self.max_steps)
        return Outcome(is_done, is_done, out_of_time, is_done)

    def _observe(self) -> NDArray[Any]:
        return self._picture() if self.is_image else self._vector()

    def _vector(self) -> NDArray[np.float32]:
        observations = np.zeros((self.num_envs, NUM_CELLS + NUM_HEADINGS + 1), dtype=np.float32)
        observations[self.all_rows, self.cell] = 1
        observations[self.all_rows, NUM_CELLS + self.heading] = 1
        observations[:, -1] = self.has_fallen
        return observations

    def _picture(self) -> NDArray[np.uint8]:
        images = np.zeros((self.num_envs, SIDE, SIDE, 3), dtype=np.uint8)
        centres = self._floor.centres(self.cell, pixels=_CELL_PIXELS)
        stamp_agents(images, centres=centres, heading=self.heading)
        fallen = np.flatnonzero(self.has_fallen)
        stamp(images, fallen, centres=centres[fallen], sprite=CROSS)
        return images

    def _draw(self, row: int) -> Image:
        """The grid with the path in grey, its start in blue and its end in green."""
        image = self._picture()[row]
        colors = cells(SIZE, SIZE)
        for color, chosen in (
            (DARK, np.flatnonzero(self.is_path[row])),
            (dim(BLUE), self.start[row]),
            (dim(GREEN), self.end[row]),
        ):
            columns, rows = np.divmod(chosen, SIZE)
            colors[rows, columns] = color
        floor = enlarge(colors, factor=_CELL_PIXELS)
        return enlarge(np.where(image.any(axis=2, keepdims=True), image, floor))
