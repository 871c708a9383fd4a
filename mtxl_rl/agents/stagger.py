"""Spreading environments over their episodes before a run begins."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mtxl_rl.agents.vector_env import VectorEnv


class Stagger(NamedTuple):
    """Random steps that spread the environments over their episodes."""

    num_steps: int
    """Random steps of every environment."""
    starts: NDArray[np.int64]
    """The step after which each environment of the run starts its episode; 0: before the first."""
    rows: slice
    """The environments of this process."""

    @classmethod
    def over(cls, num_steps: int, num_envs: int, *, rows: slice | None = None) -> "Stagger":
        """Spread the starts: environment i of B starts in the i-th of B equal parts of the steps.

        The exact step is random, because episodes may be shorter than `num_steps`.
        """
        shares = np.arange(num_envs) + np.random.default_rng(0).random(num_envs)
        starts = (shares * num_steps / num_envs).astype(np.int64)
        return cls(num_steps, starts, rows or slice(0, num_envs))

    def run(
        self,
        env: VectorEnv,
        observation: Any,  # noqa: ANN401
        info: dict[str, Any],
    ) -> tuple[Any, dict[str, Any], NDArray[np.bool_]]:
        """Take the random steps after a reset; the actions do not depend on the processes.

        Returns:
            Observation and info after them, and the environments whose episode starts with it.
        """
        actions = batch_space(env.single_action_space, len(self.starts))
        actions.seed(0)
        starting = np.ones(env.num_envs, dtype=np.bool_)
        for step in range(1, self.num_steps + 1):
            observation, _, terminated, truncated, info = env.step(actions.sample()[self.rows])
            starting = self.starts[self.rows] == step
            if step == self.num_steps:  # An episode that has just ended has no row to start at.
                starting |= terminated | truncated
            if starting.any():
                observation, info = env.reset(options={"reset_mask": starting})
        return observation, info, starting
