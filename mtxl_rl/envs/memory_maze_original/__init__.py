"""The original Memory Maze (the package memory-maze), with equal episodes but faster."""

from mtxl_rl.envs.memory_maze_original.environment import (
    MemoryMazeOriginal,
    MemoryMazeOriginalConfig,
    make_memory_maze_original,
)

__all__ = ["MemoryMazeOriginal", "MemoryMazeOriginalConfig", "make_memory_maze_original"]
