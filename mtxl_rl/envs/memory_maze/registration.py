"""Registers every size and variant with Gymnasium; loads nothing else."""

import gymnasium

from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.spec import VARIANTS

_PACKAGE = "mtxl_rl.envs.memory_maze"


def register_memory_mazes() -> None:
    """Make ``mtxl_rl/MemoryMaze-9x9-v0``, ``...-9x9-Vis-v0`` and so on known."""
    for size in SIZES:
        for variant, options in VARIANTS.items():
            gymnasium.register(
                id=f"mtxl_rl/MemoryMaze-{size}{variant}-v0",
                entry_point=f"{_PACKAGE}.single:make_single",
                vector_entry_point=f"{_PACKAGE}.vector:make_vector",
                kwargs={"size": size, **options},
            )
