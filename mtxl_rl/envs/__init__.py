"""Worlds for agents with memory: NumPy and Gymnasium only, never Torch.

Importing this registers ``mtxl_rl/MemoryMaze-9x9-v0`` and its variants with Gymnasium.
"""

from mtxl_rl.envs.memory_maze.registration import register_memory_mazes

register_memory_mazes()
