"""Two environments of the original Memory Maze that are never closed; prints a picture's shape."""

import sys

from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginal

if __name__ == "__main__":
    envs = [MemoryMazeOriginal(seed=seed) for seed in (0, 1)]
    for env in envs:
        env.reset()
        env.step(1)
    del envs[0]
    sys.stdout.write(f"{envs[0].reset()[0].shape}\n")
