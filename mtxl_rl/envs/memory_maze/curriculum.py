"""Smaller mazes for training: which size an environment plays, and how it fits the full size.

A small maze has frequent rewards, so an agent learns early to remember where the
spheres are. It lies in the middle of the full size's grid with walls around it, has as many spheres
as the full size, and its episodes last as long.
"""

import math

from mtxl_rl.envs.memory_maze.spec import SIZES, MazeSize, MemoryMazeConfig

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def size_to_play(config: MemoryMazeConfig, *, seed: int, num_steps: int) -> str:
    """Return the size of the next maze of an environment.

    Each environment has a point in [0, 1), and each size of the curriculum an interval, smallest
    first. Points of consecutive seeds are spread evenly, so the sizes have their shares in any
    slice of the environments. The intervals shrink to nothing over `config.curriculum_steps`.

    Args:
        config: The task.
        seed: The environment's seed.
        num_steps: Steps of this environment since it was seeded.
    """
    point = seed * _GOLDEN_RATIO % 1.0
    scale = 1.0
    if config.curriculum_steps:
        scale = max(0.0, 1.0 - num_steps / config.curriculum_steps)
    end = 0.0
    for size in sorted(config.curriculum, key=lambda size: SIZES[size].side):
        end += scale * config.curriculum[size]
        if point < end:
            return size
    return config.size


def with_targets(size: MazeSize, *, num_targets: int) -> MazeSize:
    """Return the size with another number of spheres, and rooms with space for them."""
    factor = math.ceil(num_targets / size.num_targets)
    return size._replace(num_targets=num_targets, objects_per_room=factor * size.objects_per_room)
