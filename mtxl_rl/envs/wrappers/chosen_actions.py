"""Some of an environment's discrete actions, for agents that need no others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray


class ChosenActions(VectorWrapper[Any, Any, Any, Any, Any]):
    """Offers the actions given, renumbered from 0.

    Actions that do nothing are not free: an entropy bonus is earned by them as well as by those
    that explore.

    Raises:
        ValueError: the actions are not the environment's, or are given twice.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], actions: Sequence[int]) -> None:
        super().__init__(env)
        space = env.single_action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"env.actions={list(actions)} chooses among discrete actions, but this environment "
                f"has {space}; leave env.actions out."
            )
        first, last = int(space.start), int(space.start + space.n - 1)
        if len(set(actions)) < len(actions) or not all(first <= one <= last for one in actions):
            raise ValueError(
                f"env.actions={list(actions)} must be different numbers from {first} to {last}, "
                f"e.g. env.actions=[{first},{last}]; leave it out for all of them."
            )
        self.chosen = np.asarray(actions, dtype=space.dtype)
        self.single_action_space = spaces.Discrete(len(actions))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One step with the environment's own numbers."""
        return self.env.step(self.chosen[np.asarray(actions)])


def choose_actions(
    env: VectorEnv[Any, Any, Any], actions: Sequence[int]
) -> VectorEnv[Any, Any, Any]:
    """`env` with these actions alone; with all of its own where none is named."""
    if not actions:
        return env
    try:
        return ChosenActions(env, actions)
    except ValueError:
        env.close()
        raise
