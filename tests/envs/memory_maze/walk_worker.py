"""Walk in Memory Maze; print a hash of the pictures and poses, and the packages that it loads."""

import hashlib
import json
import sys

import numpy as np

from mtxl_rl.envs.memory_maze.single import MemoryMaze
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

if __name__ == "__main__":
    single = MemoryMaze(seed=0)
    single.reset()
    single.step(1)
    config = MemoryMazeConfig(num_threads=1, textures="procedural")
    env = MemoryMazeVectorEnv(16, config=config, seed=0)
    images = [env.reset(seed=0)[0]]
    actions = np.random.default_rng(0).integers(0, 6, (100, 16))
    images += [env.step(action)[0] for action in actions]
    digest = hashlib.sha256(np.stack(images).tobytes() + env.walkers().tobytes()).hexdigest()
    packages = sorted({loaded.partition(".")[0] for loaded in sys.modules})
    json.dump({"digest": digest, "packages": packages}, sys.stdout)
