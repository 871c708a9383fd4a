"""MemoryChain: bits at the start, a question about one of them at the end.

Rules: the agent sees `num_bits` bits, waits `memory_length` steps and then answers what one of the
bits was.
Source: Osband et al. (2020), "Behaviour Suite for Reinforcement Learning", arXiv 1908.03568.
Observation, rewards and lengths equal bsuite 0.3.6, without its leading axis of size 1.
Observation: [time left, index of the bit asked about, the bits as -1 and 1]. The bits are shown at
the reset and, as in bsuite, again after the first step; they are 0 elsewhere. The time falls from 1
to 0 in `memory_length` equal parts from the second step on. The index is shown in the last decision
and is 0 elsewhere.
Action: 0 or 1; only the last one counts.
Reward: 1 for the right last action, else -1; 0 before.
Episode length: memory_length + 1 steps; the answer terminates the episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import (
    BLUE,
    DARK,
    GRAY,
    WHITE,
    YELLOW,
    Image,
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


@dataclass(kw_only=True, slots=True)
class MemoryChainConfig:
    """Options of ``env=MemoryChain``."""

    name: str = "MemoryChain"
    """The environment's name in the registry."""
    memory_length: int = 100
    """Steps between the bits and the question, at least 1 (bsuite's memory_len: 1 .. 100)."""
    num_bits: int = 1
    """Bits to remember, at least 1 (bsuite's memory_size: 1 .. 40, with memory_length=2)."""

    def __post_init__(self) -> None:
        check_at_least("memory_length", self.memory_length, least=1, example=100)
        check_at_least("num_bits", self.num_bits, least=1, example=1)

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.memory_length + 1

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"{self.num_bits} bit{'s' if self.num_bits > 1 else ''} of the first steps",
            memory_window=self.memory_length - 1,
        )


class MemoryChain(VectorTask):
    """The memory chain; see the module's docstring."""

    state_names = ("bits", "query")
    observation_names = ("time left", "question", "first bit")

    def __init__(
        self, config: MemoryChainConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        low = np.array([0.0, 0.0, *[-1.0] * config.num_bits], dtype=np.float32)
        high = np.array(
            [1.0, max(1, config.num_bits - 1), *[1.0] * config.num_bits], dtype=np.float32
        )
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Box(low, high, dtype=np.float32),
            num_actions=2,
        )
        self.memory_length = config.memory_length
        self.bits = np.zeros((num_envs, config.num_bits), dtype=np.int64)
        self.query = np.zeros(num_envs, dtype=np.int64)

    def _start(self, rows: Rows) -> None:
        num_bits = self.bits.shape[1]
        self.bits[rows] = self.streams.integers(rows, 2, num_bits)
        self.query[rows] = self.streams.integers(rows, num_bits, 1)[:, 0]

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:  # noqa: ARG002
        is_answer = self.step_index == self.memory_length
        is_right = actions == self.bits[self.all_rows, self.query]
        rewards = np.where(is_answer, np.where(is_right, 1, -1), 0)
        return Outcome(rewards, is_answer, np.zeros_like(is_answer), is_right)

    def _observe(self) -> NDArray[np.float32]:
        # The reset and the first step show the same moment.
        time = np.maximum(self.step_index - 1, 0)
        observations = np.empty((self.num_envs, 2 + self.bits.shape[1]), dtype=np.float32)
        observations[:, 0] = 1 - time / self.memory_length
        observations[:, 1] = np.where(time == self.memory_length - 1, self.query, 0)
        observations[:, 2:] = np.where((time == 0)[:, None], 2 * self.bits - 1, 0)
        return observations

    def _draw(self, row: int) -> Image:
        """Rows: the bits (dark while hidden), the bit asked about (in the last step), the time."""
        step, num_bits = int(self.step_index[row]), self.bits.shape[1]
        colors = cells(5, max(num_bits, 20))
        for index, bit in enumerate(self.bits[row]):
            color = YELLOW if bit else BLUE
            colors[0, index] = color if step <= 1 else dim(color)
        colors[2, self.query[row]] = WHITE if step >= self.memory_length else DARK
        colors[4] = DARK
        colors[4, : round(colors.shape[1] * step / (self.memory_length + 1))] = GRAY
        return draw_cells(colors)
