"""Restrict an environment to some of its discrete actions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mtxl_rl.envs.wrappers.checked import AnyVectorWrapper


class ChosenActions(AnyVectorWrapper):
    """A vector environment with only the chosen actions, renumbered from 0.

    Useless actions cost exploration: an entropy bonus rewards them as much as useful ones.

    Raises:
        ValueError: The environment does not have these actions, or one is repeated.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], actions: Sequence[int]) -> None:
        super().__init__(env)
        space = env.single_action_space
        if not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"env.actions={list(actions)} chooses among discrete actions, but this environment "
                f"has {space}; remove env.actions."
            )
        first, last = int(space.start), int(space.start + space.n - 1)
        if len(set(actions)) < len(actions) or not all(
            first <= action <= last for action in actions
        ):
            raise ValueError(
                f"env.actions={list(actions)} must be different numbers from {first} to {last}, "
                f"e.g. env.actions=[{first},{last}]; remove it to allow all of them."
            )
        self.chosen = np.asarray(actions, dtype=space.dtype)
        self.single_action_space = spaces.Discrete(len(actions))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step with the environment's numbers of the chosen actions."""
        return self.env.step(self.chosen[np.asarray(actions)])


def choose_actions(
    env: VectorEnv[Any, Any, Any], actions: Sequence[int]
) -> VectorEnv[Any, Any, Any]:
    """Return `env` restricted to these actions, or `env` itself if `actions` is empty."""
    if not actions:
        return env
    try:
        return ChosenActions(env, actions)
    except ValueError:
        env.close()
        raise
