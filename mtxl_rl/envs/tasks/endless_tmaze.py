"""EndlessTMaze: a chain of T-mazes in which each corridor's cue replaces the one before.

Rules: the agent walks along `num_corridors` corridors. At each junction it must turn to the side
that was shown at that corridor's start; a wrong turn ends the episode.
Source: Shchendrigin et al. (2026), "Memory Retention Is Not Enough to Master Memory Tasks in
Reinforcement Learning", https://arxiv.org/abs/2601.15086: rules, time limit and rewards. The
authors' code differs from the paper: there only actions other than forward cost 0.01, and a wrong
turn costs 0.01 instead of 1. Success is the same.
Observation: [position / corridor_length, cue is left, cue is right]; the cue is shown at a
corridor's first cell only.
Action: 0 forward, 1 left, 2 right. Left and right act at the junction only.
Reward: -0.01 for a step in a corridor; at a junction 1 for the cue's side, -1 for any other action.
Episode length: until the last corridor is passed or a turn is wrong (terminated), at most
6 (corridor_length + 1) num_corridors steps (truncated). `success` is 1 if all were passed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import DARK, GREEN, Image, cells, draw_cells, t_maze_cells
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)

REGIMES = ("fixed", "uniform")
CONFIGURATIONS = tuple(itertools.product(REGIMES, (1, 3, 5, 10), (5, 10)))
"""Sixteen settings to report: regime, num_corridors and corridor_length.

Like the sixteen of the paper they combine regimes with numbers and lengths of corridors. The
authors' code has 3 and 5 corridors of lengths 5 and 10; the other numbers are ours."""
FORWARD = 0
_STEP_PENALTY = 0.01


@dataclass(kw_only=True, slots=True)
class EndlessTMazeConfig:
    """Options of ``env=EndlessTMaze``."""

    name: str = "EndlessTMaze"
    """The environment's name in the registry."""
    corridor_length: int = 10
    """Steps of the longest corridor, at least 1."""
    num_corridors: int = 5
    """Corridors of an episode, each with a cue of its own, at least 1."""
    regime: str = "fixed"
    """fixed: every corridor has `corridor_length` steps; uniform: 1 .. corridor_length, drawn."""

    def __post_init__(self) -> None:
        check_at_least("corridor_length", self.corridor_length, least=1, example=10)
        check_at_least("num_corridors", self.num_corridors, least=1, example=5)
        check_choice("env.regime", self.regime, REGIMES)

    @property
    def steps_per_episode(self) -> int:
        """Steps of an episode that succeeds without waiting; 0 where corridors differ."""
        if self.regime == "uniform":
            return 0
        return (self.corridor_length + 1) * self.num_corridors

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        walk = self.num_corridors * (1 if self.regime == "uniform" else self.corridor_length)
        limit = 6 * (self.corridor_length + 1) * self.num_corridors
        return TaskDescription(
            horizon=limit,
            # The least return: waiting, then a wrong turn in the last step.
            reward_range=(-1 - _STEP_PENALTY * (limit - 1), self.num_corridors - 0.01 * walk),
            remembered=f"the newest of {self.num_corridors} bits",
            memory_window=self.corridor_length,
        )


class EndlessTMaze(VectorTask):
    """The endless T-maze; see the module's docstring."""

    state_names = ("cue", "position", "length", "num_passed")
    observation_names = ("position", "cue left", "cue right")

    def __init__(
        self, config: EndlessTMazeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(0.0, 1.0, (3,), np.float32),
            num_actions=3,
        )
        self.longest = config.corridor_length
        self.num_corridors = config.num_corridors
        self.is_uniform = config.regime == "uniform"
        self.max_steps = config.describe().horizon
        self.cue = np.zeros(num_envs, dtype=np.int64)
        self.position = np.zeros(num_envs, dtype=np.int64)
        self.length = np.full(num_envs, self.longest)
        """Steps of the current corridor."""
        self.num_passed = np.zeros(num_envs, dtype=np.int64)

    def _start(self, rows: Rows) -> None:
        self.num_passed[rows] = 0
        self._enter(rows)

    def _enter(self, rows: Rows) -> None:
        self.position[rows] = 0
        draws = self.streams.uniform(rows, 2 if self.is_uniform else 1)
        self.cue[rows] = draws[:, 0] < 0.5
        if self.is_uniform:
            self.length[rows] = 1 + np.floor(draws[:, 1] * self.longest)

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        at_junction = self.position == self.length
        is_right = at_junction & (actions == self.cue + 1)
        self.position += live & ~at_junction & (actions == FORWARD)
        self.num_passed += live & is_right
        is_done = is_right & (self.num_passed == self.num_corridors)
        enters_next = np.flatnonzero(live & is_right & ~is_done)
        if enters_next.size:
            self._enter(enters_next)
        rewards = np.where(at_junction, np.where(is_right, 1.0, -1.0), -_STEP_PENALTY)
        terminated = is_done | (at_junction & ~is_right)
        out_of_time = ~terminated & (self.step_index + 1 >= self.max_steps)
        return Outcome(rewards, terminated, out_of_time, is_done)

    def _observe(self) -> NDArray[np.float32]:
        is_start = self.position == 0
        observations = np.empty((self.num_envs, 3), dtype=np.float32)
        observations[:, 0] = self.position / self.longest
        observations[:, 1] = is_start & (self.cue == 0)
        observations[:, 2] = is_start & (self.cue == 1)
        return observations

    def _draw(self, row: int) -> Image:
        position, length = int(self.position[row]), int(self.length[row])
        maze = t_maze_cells(
            length=length, position=position, cue=int(self.cue[row]), shows_cue=position == 0
        )
        # The row below shows the corridors passed.
        width = max(maze.shape[1], self.num_corridors)
        colors = cells(5, width)
        colors[:3, : maze.shape[1]] = maze
        colors[4, : self.num_corridors] = DARK
        colors[4, : self.num_passed[row]] = GREEN
        return draw_cells(colors)
