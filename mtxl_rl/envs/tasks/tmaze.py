"""T-mazes: see a cue, remember it along a corridor, turn to its side at the junction.

TMaze
    Rules: the agent is carried from the cue to the junction, `corridor_length` = L steps later,
    whatever its actions are; there it turns. A maze in which it walks would also test exploration:
    a failure could mean that it did not find the junction. `ActiveTMaze` is that maze.
    Source: Bakker (2001), "Reinforcement Learning with Long Short-Term Memory". As in Ni et al.
    (2023), https://arxiv.org/abs/2307.03864, the passive maze starts at the cue. The distractors
    are those of AGaLiTe (Pramanik et al. 2023, arXiv 2310.15719).
    Observation: [cue is left, cue is right, at the junction, distractors ...]. The cue is shown in
    step 0 only; between cue and junction all three are 0, so that a longer corridor shows a trained
    agent nothing new. Distractors are random bits, drawn anew in every step.
    Action: 0 left, 1 right; ignored before the junction.
    Reward: at the junction 1 for the cue's side and -1 for the other; 0 elsewhere.
    Episode length: L + 1 steps; the turn terminates the episode.

ActiveTMaze
    Rules: the agent walks along cells -1 .. L. It starts at cell 0, the cue is at cell -1 and the
    junction at cell L, so that it must fetch the cue first. An agent that ignores the cue gets 0 on
    average.
    Source: the active T-maze of Ni et al. (2023), without its penalty for not moving forward.
    Observation: [cue is left, cue is right, at the junction, at the start]; the cue is shown at
    cell -1 only.
    Action: 0 left, 1 right, 2 forward, 3 back. Left and right act at the junction only; forward
    does nothing at the junction, back nothing at the cue.
    Reward: as in TMaze.
    Episode length: until the agent turns (terminated), at most 2 (L + 3) steps (truncated), twice
    the steps of a perfect agent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import Image, draw_cells, t_maze_cells
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)


@dataclass(kw_only=True, slots=True)
class TMazeConfig:
    """Options of ``env=TMaze``."""

    name: str = "TMaze"
    """The environment's name in the registry."""
    corridor_length: int = 100
    """Steps from the cue to the junction, at least 1: how long the cue must be remembered."""
    num_distractors: int = 0
    """Random bits in each observation, unrelated to the cue, at least 0."""

    def __post_init__(self) -> None:
        check_at_least("corridor_length", self.corridor_length, least=1, example=100)
        check_at_least("num_distractors", self.num_distractors, least=0, example=6)

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.corridor_length + 1

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        noise = f" through {self.num_distractors} random bits" if self.num_distractors else ""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"the first step's bit{noise}",
            memory_window=self.corridor_length,
        )


class TMaze(VectorTask):
    """The passive T-maze; see the module's docstring.

    Args:
        config: The task's config.
        num_envs: Number of environments, at least 1.
        seed: Seed of the cues; ``reset(seed=...)`` replaces it.
    """

    state_names = ("cue", "distractors")
    observation_names = ("cue left", "cue right", "junction")

    def __init__(
        self, config: TMazeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(0.0, 1.0, (3 + config.num_distractors,), np.float32),
            num_actions=2,
        )
        self.corridor_length = config.corridor_length
        self.cue = np.zeros(num_envs, dtype=np.int64)
        self.distractors = np.zeros((num_envs, config.num_distractors), dtype=np.float32)

    def _start(self, rows: Rows) -> None:
        self.cue[rows] = self.streams.integers(rows, 2, 1)[:, 0]
        self._distract(rows)

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        at_junction = self.step_index == self.corridor_length
        is_right = actions == self.cue
        self._distract(np.flatnonzero(live))
        rewards = np.where(at_junction, np.where(is_right, 1, -1), 0)
        return Outcome(rewards, at_junction, np.zeros_like(at_junction), is_right)

    def _observe(self) -> NDArray[np.float32]:
        is_start = self.step_index == 0
        observations = np.empty((self.num_envs, 3 + self.distractors.shape[1]), dtype=np.float32)
        observations[:, 0] = is_start & (self.cue == 0)
        observations[:, 1] = is_start & (self.cue == 1)
        observations[:, 2] = self.step_index == self.corridor_length
        observations[:, 3:] = self.distractors
        return observations

    def _distract(self, rows: Rows) -> None:
        count = self.distractors.shape[1]
        if count:
            self.distractors[rows] = self.streams.integers(rows, 2, count)

    def _draw(self, row: int) -> Image:
        step, cue = int(self.step_index[row]), int(self.cue[row])
        position = min(step, self.corridor_length)
        length = self.corridor_length
        return draw_cells(
            t_maze_cells(length=length, position=position, cue=cue, shows_cue=step == 0)
        )


@dataclass(kw_only=True, slots=True)
class ActiveTMazeConfig:
    """Options of ``env=ActiveTMaze``."""

    name: str = "ActiveTMaze"
    """The environment's name in the registry."""
    corridor_length: int = 20
    """Cells from the start to the junction, at least 1."""

    def __post_init__(self) -> None:
        check_at_least("corridor_length", self.corridor_length, least=1, example=20)

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        return TaskDescription(
            horizon=2 * (self.corridor_length + 3),
            reward_range=(-1.0, 1.0),
            remembered="a bit shown one step behind the start",
            memory_window=self.corridor_length + 1,
        )


class ActiveTMaze(VectorTask):
    """The T-maze in which the agent walks and must fetch the cue; see the module's docstring."""

    state_names = ("cue", "cell")
    observation_names = ("cue left", "cue right", "junction", "start")

    def __init__(
        self, config: ActiveTMazeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(0.0, 1.0, (4,), np.float32),
            num_actions=4,
        )
        self.corridor_length = config.corridor_length
        self.max_steps = config.describe().horizon
        self.cue = np.zeros(num_envs, dtype=np.int64)
        self.cell = np.zeros(num_envs, dtype=np.int64)

    def _start(self, rows: Rows) -> None:
        self.cue[rows] = self.streams.integers(rows, 2, 1)[:, 0]
        self.cell[rows] = 0

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        turns = (self.cell == self.corridor_length) & (actions < 2)
        is_right = turns & (actions == self.cue)
        moved = self.cell + (actions == 2) - (actions == 3)
        self.cell = np.where(live, np.clip(moved, -1, self.corridor_length), self.cell)
        rewards = np.where(turns, np.where(is_right, 1, -1), 0)
        out_of_time = ~turns & (self.step_index + 1 >= self.max_steps)
        return Outcome(rewards, turns, out_of_time, is_right)

    def _observe(self) -> NDArray[np.float32]:
        at_cue = self.cell == -1
        return np.stack(
            [
                at_cue & (self.cue == 0),
                at_cue & (self.cue == 1),
                self.cell == self.corridor_length,
                self.cell == 0,
            ],
            axis=1,
        ).astype(np.float32)

    def _draw(self, row: int) -> Image:
        cell, cue = int(self.cell[row]), int(self.cue[row])
        length = self.corridor_length
        return draw_cells(t_maze_cells(length=length, position=cell, cue=cue, shows_cue=cell == -1))
