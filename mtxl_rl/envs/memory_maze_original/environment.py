"""The original Memory Maze as a Gymnasium environment, and as a vector of worker processes."""

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
    OriginalMazeSize,
    Simulation,
)
from mtxl_rl.envs.names import check_choice


@dataclass(kw_only=True, slots=True)
class MemoryMazeOriginalConfig:
    """Options of ``env=MemoryMaze-original``, which MuJoCo simulates and draws."""

    name: str = "MemoryMaze-original"
    """The environment's name in the registry."""
    size: str = "9x9"
    """Cells without the outer wall: 9x9, 11x11, 13x13 or 15x15 (or 9, 11, 13 or 15)."""
    num_workers: int = 0
    """Worker processes that share the environments, at most one each; 0: one per core."""

    def __post_init__(self) -> None:
        side = str(self.size)
        self.size = f"{side}x{side}" if side.isdecimal() else side
        _maze_size(self.size)
        if self.num_workers < 0:
            raise ValueError(
                f"env.num_workers={self.num_workers} must be 0 (one per core) or more, e.g. "
                "env.num_workers=2."
            )

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return _maze_size(self.size).seconds * CONTROL_STEPS_PER_SECOND


class MemoryMazeOriginal(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One original Memory Maze.

    Rules: find the sphere whose colour frames the picture; then another sphere is prompted. Walls,
    spheres and start are drawn for every episode.
    Source: Pasukonis et al. (2022), "Evaluating Long-Term Memory in 3D Mazes",
    https://arxiv.org/abs/2210.13383. Episodes equal those of
    `memory_maze.tasks.memory_maze_9x9(seed=seed)`.
    Observation: the walker's view, uint8 [64, 64, 3].
    Action: 0 nothing, 1 forward, 2 left, 3 right, 4 forward and left, 5 forward and right, each
    held for 0.25 s.
    Reward: 1 for touching the prompted sphere.
    Episode length: 1,000 / 2,000 / 3,000 / 4,000 steps (9x9 / 11x11 / 13x13 / 15x15); the end is a
    truncation.

    `reset(seed=s)` equals a new environment of seed s; `reset()` starts the next episode.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it without ClassVar
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_STEPS_PER_SECOND,
    }

    def __init__(
        self, *, size: str = "9x9", seed: int | None = None, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"render_mode={render_mode!r} is unknown; pass render_mode='rgb_array' or None."
            )
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._size = _maze_size(size)
        self._frame: NDArray[np.uint8] | None = None
        self._simulation = Simulation(self._size, seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the next episode, or the first episode of `seed`; there are no options."""
        if options:
            raise ValueError(
                f"options={options} are unknown; the original Memory Maze has no reset options: "
                "remove them."
            )
        super().reset(seed=seed)
        if seed is not None:
            # The original takes seeds only at construction: its layout has a stream of its own.
            self._simulation.close()
            self._simulation = Simulation(self._size, seed=seed)
        self._frame = self._simulation.reset()
        return self._frame.copy(), {}

    def step(
        self, action: SupportsIndex
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold the action for 0.25 s; `truncated` is True when the episode's time is up."""
        if self._frame is None:
            raise RuntimeError("step() came before the first reset(): call reset() first.")
        index = operator.index(action)
        if not 0 <= index < len(ACTIONS):
            raise ValueError(
                f"action={index} must be a whole number from 0 to {len(ACTIONS) - 1}, e.g. 1."
            )
        self._frame, reward, truncated = self._simulation.step(index)
        return self._frame.copy(), reward, False, truncated, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the last frame if render_mode is rgb_array, else None."""
        if self.render_mode is None or self._frame is None:
            return None
        return self._frame.copy()

    def close(self) -> None:
        """Free the model and its OpenGL context; a second call does nothing."""
        simulation = getattr(self, "_simulation", None)
        if simulation is not None:
            simulation.close()
        self._frame = None


def make_memory_maze_original(
    *, size: str, num_envs: int, seed: int, num_workers: int | None = None
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Create `num_envs` mazes in worker processes; maze i has the stream of seed + i.

    Each maze needs about 250 MB of memory.

    Args:
        size: 9x9, 11x11, 13x13 or 15x15.
        num_envs: Number of mazes.
        seed: Seed of the first maze.
        num_workers: Number of processes, at most one per maze; None or 0: one per core.
    """
    _maze_size(size)
    check_packages()
    makers = [
        functools.partial(MemoryMazeOriginal, size=size, seed=seed + i) for i in range(num_envs)
    ]
    return ProcessVectorEnv(makers, num_workers=num_workers or None)


def _maze_size(size: str) -> OriginalMazeSize:
    check_choice("env.size", size, SIZES)
    return SIZES[size]
