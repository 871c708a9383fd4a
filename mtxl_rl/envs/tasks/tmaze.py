"""T-mazes: see a cue, remember it along a corridor, turn to its side at the junction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)


@dataclass(kw_only=True, slots=True)
class TMazeConfig:
    """What ``env=TMaze`` takes."""

    name: str = "TMaze"
    """The environment's name in the registry."""
    corridor_length: int = 100
    """Steps from the cue to the junction, at least 1: how long the cue must be remembered."""
    num_distractors: int = 0
    """Random bits in each observation that mean nothing, at least 0."""

    def __post_init__(self) -> None:
        check_at_least("corridor_length", self.corridor_length, least=1, example=100)
        check_at_least("num_distractors", self.num_distractors, least=0, example=6)

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.corridor_length + 1

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        noise = f" through {self.num_distractors} random bits" if self.num_distractors else ""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"the first step's bit{noise}",
            memory_window=self.corridor_length,
        )


class TMaze(VectorTask):
    """Remember for `corridor_length` steps on which side the cue was, then turn to that side.

    An episode is `corridor_length` + 1 decisions. The observation is [cue is left, cue is right, at
    the junction, distractors ...]:

    =================== ==================== ===================================
    decision            observation          what the action does
    =================== ==================== ===================================
    0                   the cue, one-hot     nothing
    1 .. L - 1          zeros                nothing
    L = corridor_length [0, 0, 1]            0 is left, 1 is right: reward 1 if
                                             that is the cue's side, else -1; end
    =================== ==================== ===================================

    The final observation is zeros. Nothing tells the position, so a longer corridor shows a trained
    agent nothing new. Distractors are fair random bits, drawn anew at every step.

    The agent is carried forward whatever it does. A maze in which it must walk also asks it to
    explore, and a failure would not tell whether it could not find the junction or could not
    remember the cue: `ActiveTMaze` is that maze. The task is that of Bakker (2001), "Reinforcement
    Learning with Long Short-Term Memory". Ni et al. (2023), https://arxiv.org/abs/2307.03864, also
    start their passive T-maze at the cue, to test memory apart from credit assignment; there it
    walks. The distractors are those of AGaLiTe (Pramanik et al. 2023, arXiv 2310.15719).

    Args:
        config: The corridor.
        num_envs: Number of environments, at least 1.
        seed: Seed of the cues; ``reset(seed=...)`` replaces it.
    """

    state_names = ("cue", "distractors")

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


@dataclass(kw_only=True, slots=True)
class ActiveTMazeConfig:
    """What ``env=ActiveTMaze`` takes."""

    name: str = "ActiveTMaze"
    """The environment's name in the registry."""
    corridor_length: int = 20
    """Cells from the start to the junction, at least 1."""

    def __post_init__(self) -> None:
        check_at_least("corridor_length", self.corridor_length, least=1, example=20)

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=2 * (self.corridor_length + 3),
            reward_range=(-1.0, 1.0),
            remembered="a bit that only a step away from the goal shows",
            memory_window=self.corridor_length + 1,
        )


class ActiveTMaze(VectorTask):
    """The T-maze in which the agent walks, and the cue is off the path: it must fetch it first.

    Cells -1 .. corridor_length in a line: the cue is at -1, the start at 0, the junction at the
    end. The observation is [cue is left, cue is right, at the junction, at the start]; in the
    corridor between it is zeros. Actions: 0 left, 1 right, 2 forward, 3 back. Left and right at the
    junction end the episode, with reward 1 on the cue's side and -1 on the other; elsewhere they do
    nothing, nor does forward at the junction or back at the cue. After ``2 * (corridor_length +
    3)`` steps, twice what a perfect agent takes, the episode is truncated.

    An agent that never looks for the cue gets 0 on average. After the active T-maze of Ni et al.
    (2023), https://arxiv.org/abs/2307.03864, without its penalty for not moving forward.
    """

    state_names = ("cue", "cell")

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
