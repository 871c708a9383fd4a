"""Errors of an environment in a vector of this process name the environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces


class NamedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose errors name its index in the vector.

    Gymnasium's SyncVectorEnv calls all environments in a loop and concatenates their observations,
    so an error alone does not identify its environment.

    Args:
        env: The environment.
        index: Its index in the vector.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, index: int) -> None:
        super().__init__(env)
        self.index = index
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.add_note(f"environment {self.index} failed in reset, after {self._taken()}")
            raise
        self._check(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """Take a step."""
        self._num_steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            error.add_note(f"environment {self.index} failed in step {self._num_steps}")
            raise
        self._check(observation)
        number = np.asarray(reward)
        if number.size != 1 or number.dtype.kind not in "biuf":
            raise ValueError(self._message("reward", reward, "one number"))
        return observation, number.item(), terminated, truncated, info

    def _taken(self) -> str:
        return f"step {self._num_steps}"

    def _check(self, observation: Any) -> None:  # noqa: ANN401
        if not fits(observation, self.observation_space):
            raise ValueError(
                self._message("observation", observation, f"one of {self.observation_space}")
            )

    def _message(self, name: str, value: object, legal: str) -> str:
        return (
            f"{name} of environment {self.index} is {_form(value)} after {self._taken()}; it must "
            f"be {legal}: fix the environment, or convert it in a gymnasium.Wrapper"
        )


def fits(observation: Any, space: Space[Any]) -> bool:  # noqa: ANN401
    """Whether NumPy can write the observation into an array of the space's shape and dtype."""
    if isinstance(space, spaces.Dict):
        return isinstance(observation, dict) and all(
            key in observation and fits(observation[key], leaf)
            for key, leaf in space.spaces.items()
        )
    if space.shape is None or space.dtype is None:
        return True
    array = observation if isinstance(observation, np.ndarray) else np.asarray(observation)
    return array.shape == space.shape and np.can_cast(array.dtype, space.dtype, "same_kind")


def _form(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, dict):
        return f"a dict with the keys {sorted(map(str, value))}"
    return f"a {type(value).__name__}"
