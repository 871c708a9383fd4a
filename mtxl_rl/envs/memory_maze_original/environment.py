"""The original Memory Maze as a Gymnasium environment, and many of them in worker processes."""

import functools
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.backends.process_vector import ProcessVectorEnv
from mtxl_rl.envs.memory_maze_original.original_packages import check_packages
from mtxl_rl.envs.memory_maze_original.simulation import (
    ACTIONS,
    CONTROL_STEPS_PER_SECOND,
    FRAME_SIDE,
    SIZES,
    MazeSize,
    Simulation,
)


@dataclass(kw_only=True, slots=True)
class MemoryMazeOriginalConfig:
    """The original Memory Maze, drawn and simulated by MuJoCo."""

    name: str = "MemoryMaze-original"
    """The environment's name; leave it."""
    size: str = "9x9"
    """Cells without the outer wall: 9x9, 11x11, 13x13 or 15x15 (or 9, 11, 13 or 15)."""
    num_workers: int = 0
    """Worker processes that share the environments, never more than these; 0: one per core."""

    def __post_init__(self) -> None:
        side = str(self.size)
        self.size = f"{side}x{side}" if side.isdecimal() else side
        _maze_size(self.size)
        if self.num_workers < 0:
            raise ValueError(
                f"num_workers={self.num_workers} must be 0 (one per core) or a number of processes"
            )

    @property
    def steps_per_episode(self) -> int:
        """Actions of every episode."""
        return _maze_size(self.size).seconds * CONTROL_STEPS_PER_SECOND


class MemoryMazeOriginal(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One original Memory Maze: find the sphere whose colour frames the picture, again and again.

    Observation: the walker's view, uint8 [64, 64, 3]. Actions: noop, forward, left, right, forward
    + left, forward + right, each held for 0.25 s. Reward 1 for touching the right sphere. An
    episode is truncated after 1,000 / 2,000 / 3,000 / 4,000 steps (9x9 / 11x11 / 13x13 / 15x15) and
    never terminates. Walls, spheres and start are drawn anew for every episode.

    The stream of episodes is that of `memory_maze.tasks.memory_maze_9x9(seed=seed)`.
    `reset(seed=s)` is as good as a new environment of seed s; `reset()` goes on to the next episode
    of the stream.

    Pasukonis et al., Evaluating Long-Term Memory in 3D Mazes, https://arxiv.org/abs/2210.13383
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it without ClassVar
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_STEPS_PER_SECOND,
    }

    def __init__(
        self, *, size: str = "9x9", seed: int | None = None, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} must be None or 'rgb_array'")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._size = _maze_size(size)
        self._frame: NDArray[np.uint8] | None = None
        self._simulation = Simulation(self._size, seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts the next episode, or the first one of `seed`; there are no options."""
        if options:
            raise ValueError(f"options={options}: the original Memory Maze has no reset options")
        super().reset(seed=seed)
        if seed is not None:
            # The original is seeded where it is built: the layout generator keeps a stream of its
            # own.
            self._simulation.close()
            self._simulation = Simulation(self._size, seed=seed)
        self._frame = self._simulation.reset()
        return self._frame.copy(), {}

    def step(
        self, action: SupportsIndex
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Holds the action for 0.25 s; the last flag but one says that the episode's time is up."""
        if self._frame is None:
            raise RuntimeError("step() before the first reset(): call reset() to start an episode")
        index = operator.index(action)
        if not 0 <= index < len(ACTIONS):
            raise ValueError(f"action={index} must be a whole number from 0 to {len(ACTIONS) - 1}")
        self._frame, reward, truncated = self._simulation.step(index)
        return self._frame.copy(), reward, False, truncated, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The last frame, if render_mode is `rgb_array`."""
        if self.render_mode is None or self._frame is None:
            return None
        return self._frame.copy()

    def close(self) -> None:
        """Frees the model and its OpenGL context; a second call does nothing."""
        simulation = getattr(self, "_simulation", None)
        if simulation is not None:
            simulation.close()
        self._frame = None


def make_memory_maze_original(
    *, size: str, num_envs: int, seed: int, num_workers: int | None = None
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """`num_envs` mazes in worker processes; maze i has the stream of seed + i.

    About 250 MB of memory a maze. `num_workers`: None or 0 is one per core, but no more than mazes.
    """
    _maze_size(size)
    check_packages()
    makers = [
        functools.partial(MemoryMazeOriginal, size=size, seed=seed + i) for i in range(num_envs)
    ]
    return ProcessVectorEnv(makers, num_workers=num_workers or None)


def _maze_size(size: str) -> MazeSize:
    if size not in SIZES:
        raise ValueError(f"size={size!r} must be one of {', '.join(SIZES)}")
    return SIZES[size]
