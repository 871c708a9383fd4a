"""ColorCubes: remember where coloured cubes lie, and correct that map when one teleports.

Rules: the agent walks on a grid to the cube of the wanted colour and takes it. When a colour is
prompted, the map is shown once: every cube with its colour. Then it is hidden. In each step a cube
that is not wanted teleports to a free cell with probability 0.1, and the map is shown once more. At
the level `extreme` it is shown without colours, so that the agent must infer which cube moved. A
taken cube moves to a free cell, and the next colour is drawn. Taking another cube ends the episode;
taking on an empty cell does nothing.
Source: the task of Shchendrigin et al. (2026), https://arxiv.org/abs/2601.15086: N cubes on a grid,
K phases, teleports, complete or incomplete updates. Its levels are N = K = 1, several cubes, and
hidden colours. Grid size, N = K = 3, the teleports' probability, the time limit and the effect of a
wrong take are ours, so results are not comparable with the paper's.
Observation: [the agent's place; the wanted colour one-hot; each cube's place, by colour; at the
level `extreme` each cube's place without its colour, row by row]. A place is the row one-hot and
the column one-hot; zeros where it is not shown.
Action: 0 up, 1 right, 2 down, 3 left, 4 take.
Reward: 1 for the wanted cube, -1 for another.
Episode length: until as many cubes were taken as there are or a wrong one was (terminated), at most
4 grid_size steps for each cube (truncated). `success` is 1 if all were taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import Rows, distinct
from mtxl_rl.envs.tasks.canvas import (
    GRAY,
    PALETTE,
    WHITE,
    Image,
    add_border,
    cells,
    dim,
    draw_cells,
)
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)
from mtxl_rl.envs.tasks.walker import step_table

LEVELS = ("trivial", "medium", "extreme")
TAKE = 4
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
"""Rows and columns of up, right, down, left, take."""
_TELEPORT_PROBABILITY = 0.1
_HIDDEN, _POSITIONS, _ALL = 0, 1, 2


@dataclass(kw_only=True, slots=True)
class ColorCubesConfig:
    """Options of ``env=ColorCubes``."""

    name: str = "ColorCubes"
    """The environment's name in the registry."""
    level: str = "trivial"
    """trivial: 1 cube to take once. medium: 3 cubes that teleport, 3 to take. extreme: the same,
    and teleports are shown without colours."""
    grid_size: int = 7
    """Cells along a side, at least 3."""

    def __post_init__(self) -> None:
        check_choice("env.level", self.level, LEVELS)
        check_at_least("grid_size", self.grid_size, least=3, example=7)

    @property
    def num_cubes(self) -> int:
        """Cubes, each of its own colour; also how many must be taken."""
        return 1 if self.level == "trivial" else 3

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        remembered = {
            "trivial": "where the cube lies",
            "medium": "where 3 cubes lie, corrected when one teleports",
            "extreme": "where 3 cubes lie, and which one it was that teleported",
        }
        return TaskDescription(
            horizon=4 * self.grid_size * self.num_cubes,
            reward_range=(-1.0 if self.num_cubes > 1 else 0.0, float(self.num_cubes)),
            remembered=remembered[self.level],
            memory_window=2 * (self.grid_size - 1),
        )


class ColorCubes(VectorTask):
    """Coloured cubes that teleport; see the module's docstring."""

    state_names = ("agent", "cubes", "target", "shown", "num_taken")

    def __init__(
        self, config: ColorCubesConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.size, self.num_cubes = config.grid_size, config.num_cubes
        self.num_cells = self.size**2
        self.hides_colours = config.level == "extreme"
        num_places = 1 + self.num_cubes * (2 if self.hides_colours else 1)
        length = 2 * self.size * num_places + self.num_cubes
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(0.0, 1.0, (length,), np.float32),
            num_actions=5,
        )
        self.max_steps = config.describe().horizon
        self._length = length
        self._after = step_table(_MOVES, size=self.size)
        self.agent = np.zeros(num_envs, dtype=np.int64)
        """The agent's cell: row * size + column."""
        self.cubes = np.zeros((num_envs, self.num_cubes), dtype=np.int64)
        """Each colour's cell."""
        self.target = np.zeros(num_envs, dtype=np.int64)
        """The wanted cube's colour."""
        self.shown = np.zeros(num_envs, dtype=np.int64)
        """Content of the map in the last observation: 0 nothing, 1 positions, 2 colours as well."""
        self.num_taken = np.zeros(num_envs, dtype=np.int64)

    def _start(self, rows: Rows) -> None:
        draws = self.streams.uniform(rows, 2 + self.num_cubes)
        cells = distinct(draws[:, 1:], high=self.num_cells)
        self.agent[rows] = cells[:, 0]
        self.cubes[rows] = cells[:, 1:]
        self.target[rows] = np.floor(draws[:, 0] * self.num_cubes)
        self.shown[rows] = _ALL
        self.num_taken[rows] = 0

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        takes = live & (actions == TAKE)
        is_right = takes & (self.agent == self.cubes[self.all_rows, self.target])
        is_wrong = takes & ~is_right & (self.agent[:, None] == self.cubes).any(axis=1)
        self.num_taken += is_right
        is_done = is_right & (self.num_taken == self.num_cubes)
        self.agent = np.where(live, self._after[self.agent, actions], self.agent)
        self.shown[:] = _HIDDEN
        if self.num_cubes > 1:
            self._move_cubes(np.flatnonzero(live & ~is_done & ~is_wrong), is_right)
        rewards = is_right.astype(np.int64) - is_wrong
        terminated = is_done | is_wrong
        out_of_time = ~terminated & (self.step_index + 1 >= self.max_steps)
        return Outcome(rewards, terminated, out_of_time, is_done)

    def _move_cubes(self, rows: Rows, is_right: Flags) -> None:
        """Move cubes that were taken and, at random, one that is not wanted."""
        draws = self.streams.uniform(rows, 3)
        moves = is_right[rows] | (draws[:, 0] < _TELEPORT_PROBABILITY)
        rows, draws = rows[moves], draws[moves]
        was_taken, target = is_right[rows], self.target[rows]
        after_target = 1 + np.floor(draws[:, 1] * (self.num_cubes - 1)).astype(np.int64)
        other = (target + after_target) % self.num_cubes
        self._teleport(rows, np.where(was_taken, target, other), draws[:, 2])
        self.target[rows] = np.where(was_taken, np.floor(draws[:, 0] * self.num_cubes), target)
        self.shown[rows] = np.where(was_taken | ~np.bool_(self.hides_colours), _ALL, _POSITIONS)

    def _teleport(self, rows: Rows, colour: NDArray[Any], draws: NDArray[Any]) -> None:
        """Move a cube to a random cell that holds neither a cube nor the agent."""
        is_free = np.ones((len(rows), self.num_cells), dtype=np.bool_)
        local = np.arange(len(rows))
        is_free[local[:, None], self.cubes[rows]] = False
        is_free[local, self.agent[rows]] = False
        chosen = np.floor(draws * is_free.sum(axis=1))
        self.cubes[rows, colour] = (is_free.cumsum(axis=1) > chosen[:, None]).argmax(axis=1)

    def _observe(self) -> NDArray[np.float32]:
        observations = np.zeros((self.num_envs, self._length), dtype=np.float32)
        self._show(observations, self.all_rows, self.agent, first=0)
        observations[self.all_rows, 2 * self.size + self.target] = 1
        colours = np.arange(self.num_cubes)
        first = 2 * self.size * (1 + colours) + self.num_cubes
        rows = np.flatnonzero(self.shown == _ALL)
        self._show(observations, rows[:, None], self.cubes[rows], first=first)
        if self.hides_colours:
            rows = np.flatnonzero(self.shown == _POSITIONS)
            places = np.sort(self.cubes[rows], axis=1)
            first += 2 * self.size * self.num_cubes
            self._show(observations, rows[:, None], places, first=first)
        return observations

    def _show(
        self,
        observations: NDArray[np.float32],
        rows: NDArray[Any],
        cells: NDArray[Any],
        *,
        first: int | NDArray[Any],
    ) -> None:
        """Write the one-hot rows and columns of `cells`, starting at index `first`."""
        observations[rows, first + cells // self.size] = 1
        observations[rows, first + self.size + cells % self.size] = 1

    def _draw(self, row: int) -> Image:
        """The grid, cubes dark while hidden, the agent white, framed in the wanted colour."""
        colors = cells(self.size, self.size, color=GRAY)
        for cube, cell in enumerate(self.cubes[row]):
            color = PALETTE[cube]
            colors[divmod(cell, self.size)] = color if self.shown[row] == _ALL else dim(color)
        agent_row, agent_column = divmod(int(self.agent[row]), self.size)
        image = draw_cells(colors, marks=[(agent_row, agent_column, WHITE)])
        return add_border(image, PALETTE[self.target[row]])
