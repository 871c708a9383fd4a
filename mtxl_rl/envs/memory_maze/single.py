"""One Memory Maze as a Gymnasium environment: a vector of one."""

from typing import Any

import numpy as np

from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.wrappers.checked import EnvState
from mtxl_rl.envs.wrappers.single_env import SingleEnv


class MemoryMaze(SingleEnv):
    """One Memory Maze; see `MemoryMazeVectorEnv`, which is faster for several mazes.

    Args:
        config: The task; 9x9 by default.
        seed: Seed of the stream of episodes; None draws one.
        render_mode: None or ``rgb_array``.
    """

    vector: MemoryMazeVectorEnv

    def __init__(
        self,
        *,
        config: MemoryMazeConfig | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(MemoryMazeVectorEnv(1, config=config, seed=seed, render_mode=render_mode))

    def get_state(self) -> EnvState:
        """The state, as copies; one of `MemoryMazeVectorEnv.get_env_state` is the same."""
        return self.vector.get_state()

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`."""
        self.vector.set_state(state)
        self._is_running = not bool(np.asarray(state["ended"])[0])


def make_single(
    *,
    render_mode: str | None = None,
    seed: int | None = None,
    **options: Any,  # noqa: ANN401 - gymnasium.make passes a config's fields
) -> MemoryMaze:
    """Entry point of `gymnasium.make`; options are the fields of `MemoryMazeConfig`."""
    return MemoryMaze(config=MemoryMazeConfig(**options), seed=seed, render_mode=render_mode)
