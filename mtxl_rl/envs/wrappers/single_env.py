"""A vector environment of one as a single Gymnasium environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv


class SingleEnv(gymnasium.Env[Any, Any]):
    """The only environment of a vector, without the batch axis.

    Args:
        vector: A vector environment with ``num_envs=1`` and ``NEXT_STEP`` autoreset.
    """

    def __init__(self, vector: VectorEnv[Any, Any, Any]) -> None:
        assert vector.num_envs == 1, vector.num_envs
        self.vector = vector
        self.metadata = {
            key: value for key, value in vector.metadata.items() if key != "autoreset_mode"
        }
        self.render_mode = vector.render_mode
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self._is_running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode, or the first episode of `seed`."""
        super().reset(seed=seed)
        observations, infos = self.vector.reset(seed=seed, options=options)
        self._is_running = True
        return _first(observations), _first_infos(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Step the environment; raise ValueError where no episode is running."""
        if not self._is_running:
            raise ValueError(
                "step() came before the first reset() or after the episode's end: call reset() "
                "first."
            )
        observations, rewards, terminated, truncated, infos = self.vector.step(np.asarray([action]))
        self._is_running = not (terminated[0] or truncated[0])
        return (
            _first(observations),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first_infos(infos),
        )

    def render(self) -> Any:  # noqa: ANN401 - what the vector's render mode returns
        """Return the current picture, or None without a render mode."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Close the vector environment; a second call does nothing."""
        self.vector.close()


def _first(observations: Any) -> Any:  # noqa: ANN401 - an array, or a dict of them
    if isinstance(observations, dict):
        return {key: value[0] for key, value in observations.items()}
    return observations[0]


def _first_infos(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the infos that the environment set; ``_key`` marks which ones of a batch did."""
    return {key: infos[key][0] for key in infos if f"_{key}" in infos and infos[f"_{key}"][0]}
