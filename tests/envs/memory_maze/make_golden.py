"""Writes golden.npz from the original package: short walks, one-step physics, pictures.

    python tests/envs/memory_maze/make_golden.py

The default tests compare with it and need no MuJoCo. Regenerate it only for a reason that the
commit message states.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from conftest import Yardstick

from mtxl_rl.envs.memory_maze.careful import careful
from mtxl_rl.envs.memory_maze.spec import ACTIONS, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.memory_maze_original.original_packages import import_packages

WALKS = {"9x9": (0, 1), "11x11": (2,), "13x13": (3,), "15x15": (4,)}
NUM_STEPS, STEPS_PER_PICTURE = 80, 20
VARIANTS: dict[str, dict[str, Any]] = {
    "vis": {"good_visibility": True},
    "hd": {"camera_resolution": 256},
    "top": {"camera_resolution": 256, "top_camera": True},
    "oracle": {"global_observables": True, "show_path": True},
    "6cl": {"randomize_colors": True},
}


def main() -> None:
    """Write the file next to this script."""
    golden: dict[str, Any] = {}
    for size, seeds in WALKS.items():
        for seed in seeds:
            golden |= walk(size, seed)
    golden |= single_steps()
    golden |= variants()
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **golden)
    # OSMesa complains when Python ends in the usual way.
    os._exit(0)


def walk(size: str, seed: int) -> dict[str, Any]:
    """A walk along shortest paths with 15 % random actions."""
    original = Yardstick(size, seed=seed)
    env = MemoryMazeVectorEnv(1, config=MemoryMazeConfig(size=size), seed=seed)
    env.reset()
    rng = np.random.default_rng(seed)
    pictures = [original.env.reset()[0]]
    actions, rewards, positions = [], [], [original.position()]
    for step in range(1, NUM_STEPS + 1):
        action = int(careful(env)[0]) if rng.random() > 0.15 else int(rng.integers(6))
        env.step(np.array([action]))
        picture, reward, *_ = original.env.step(action)
        actions.append(action)
        rewards.append(reward)
        positions.append(original.position())
        if step % STEPS_PER_PICTURE == 0:
            pictures.append(picture)
    layer = np.array(original.task._maze_arena.maze.entity_layer)
    name = f"walk_{size}_{seed}"
    return {
        f"{name}_walls": np.isin(layer, list("0123456789*")),
        f"{name}_actions": actions,
        f"{name}_rewards": rewards,
        f"{name}_positions": positions,
        f"{name}_pictures": pictures,
    }


def single_steps() -> dict[str, Any]:
    """States of a walk that scrapes along walls, and those after one action, at tolerance 0."""
    original = Yardstick("9x9", seed=7)
    original.env.reset()
    original.model.opt.tolerance = 0
    rng = np.random.default_rng(7)
    states, actions, action = [], [], 1
    for _ in range(200):
        states.append([original.position(), original.velocity()])
        if rng.random() < 0.3:
            action = int(rng.integers(1, len(ACTIONS)))
        actions.append(action)
        original.env.step(action)
    states.append([original.position(), original.velocity()])
    return {"steps_states": states, "steps_actions": actions}


def variants() -> dict[str, Any]:
    """The first picture and that after five steps forward of each variant, 9x9, seed 7."""
    import_packages()
    from memory_maze import tasks

    pictures = {}
    for name, options in VARIANTS.items():
        env = tasks.memory_maze_9x9(seed=7, image_only_obs=True, **options)
        first = np.array(env.reset().observation)
        for _ in range(5):
            last = np.array(env.step(1).observation)
        pictures[f"variant_{name}"] = np.stack([first, last])
    return pictures


if __name__ == "__main__":
    main()
