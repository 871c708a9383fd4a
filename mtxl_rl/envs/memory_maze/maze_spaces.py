"""Observation and action spaces of one Memory Maze environment."""

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from mtxl_rl.envs.memory_maze.observe import PATH
from mtxl_rl.envs.memory_maze.spec import ACTIONS, MemoryMazeConfig


def action_space(config: MemoryMazeConfig) -> Space[Any]:
    """Action space of one environment."""
    if config.discrete_actions:
        return spaces.Discrete(len(ACTIONS))
    return spaces.Box(-1.0, 1.0, (2,), np.float64)


def observation_space(config: MemoryMazeConfig) -> Space[Any]:
    """Observation space of one environment."""
    side, size = config.camera_resolution, config.maze_size
    image = spaces.Box(0, 255, (side, side, 3), np.uint8)
    if not config.extra_observations:
        return image

    def numbers(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float64)

    seen = {
        "visible_targets_vec": numbers(size.num_targets, 2),
        "seen_targets_vec": numbers(size.num_targets, 2),
        "seen_targets_pos": numbers(size.num_targets, 2),
        "seen_target_pos": numbers(2),
        "first_vec": numbers(2),
        "first_dir": numbers(2),
        "last_vec": numbers(2),
        "last_dir": numbers(2),
    }
    return spaces.Dict(
        {
            "image": image,
            "target_color": numbers(3),
            "agent_pos": numbers(2),
            "agent_dir": numbers(2),
            "targets_vec": numbers(size.num_targets, 2),
            "targets_pos": numbers(size.num_targets, 2),
            "target_vec": numbers(2),
            "target_pos": numbers(2),
            "maze_layout": spaces.Box(
                0, PATH if config.show_path else 1, (size.side, size.side), np.uint8
            ),
            **(seen if config.seen_observations else {}),
        }
    )


def share_bounds(space: Space[Any]) -> None:
    """Share one environment's bounds among the whole batch.

    Gymnasium stores four arrays of bounds per environment: four times a picture's 12 KB.
    """
    boxes = space.values() if isinstance(space, spaces.Dict) else [space]
    for box in boxes:
        for name in ("low", "high", "bounded_below", "bounded_above"):
            bounds = getattr(box, name)
            setattr(box, name, np.broadcast_to(bounds[:1].copy(), bounds.shape))
