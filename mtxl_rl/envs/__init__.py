"""Environments; they import NumPy and Gymnasium, never torch.

Importing this package registers ``mtxl_rl/TMaze-v0``, ``mtxl_rl/MemoryMaze-9x9-v0`` and all other
tasks with Gymnasium.
"""

from mtxl_rl.envs.gymnasium_ids import register_tasks
from mtxl_rl.envs.memory_maze.registration import register_memory_mazes

register_tasks()
register_memory_mazes()
