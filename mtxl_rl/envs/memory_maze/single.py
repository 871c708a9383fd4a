"""One Memory Maze as a Gymnasium environment: a vector of one."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.wrappers.checked import EnvState


class MemoryMaze(gymnasium.Env[Any, Any]):
    """One Memory Maze; see `MemoryMazeVectorEnv`, which is faster for several mazes.

    Args:
        config: The task; 9x9 by default.
        seed: Seed of the stream of episodes; None draws one.
        render_mode: None or ``rgb_array``.
    """

    def __init__(
        self,
        *,
        config: MemoryMazeConfig | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.vector = MemoryMazeVectorEnv(1, config=config, seed=seed, render_mode=render_mode)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": self.vector.config.control_freq,
        }
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self._needs_reset = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode, or the first one of `seed`; there are no options."""
        super().reset(seed=seed)
        observations, _ = self.vector.reset(seed=seed, options=options)
        self._needs_reset = False
        return _first(observations), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Hold the action; `truncated` is true when the episode's time is up."""
        if self._needs_reset:
            raise ValueError("step() came after the episode's end: call reset() first.")
        observations, rewards, _, truncated, _ = self.vector.step(np.asarray([action]))
        self._needs_reset = bool(truncated[0])
        return _first(observations), float(rewards[0]), False, self._needs_reset, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The current picture, if render_mode is ``rgb_array``."""
        images = self.vector.render()
        return None if images is None else images[0]

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        self.vector.close()

    def get_state(self) -> EnvState:
        """The state, as copies; one of `MemoryMazeVectorEnv.get_env_state` is the same."""
        return self.vector.get_state()

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`."""
        self.vector.set_state(state)
        self._needs_reset = bool(np.asarray(state["ended"])[0])


def _first(observations: Any) -> Any:  # noqa: ANN401 - an array, or a dict of them
    if isinstance(observations, dict):
        return {key: value[0] for key, value in observations.items()}
    return observations[0]


def make_single(
    *,
    render_mode: str | None = None,
    seed: int | None = None,
    **options: Any,  # noqa: ANN401 - gymnasium.make passes a config's fields
) -> MemoryMaze:
    """Entry point of `gymnasium.make`; options are the fields of `MemoryMazeConfig`."""
    return MemoryMaze(config=MemoryMazeConfig(**options), seed=seed, render_mode=render_mode)
