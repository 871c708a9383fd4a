"""Prints the original package's returns on 9x9 under random actions, a line for each seed.

    python tests/envs/memory_maze/original_returns.py --episodes 64

The original takes minutes for what the native engine does in seconds; `test_returns.py` holds what
was printed.
"""

import argparse
import os

import numpy as np

from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginal

NUM_STEPS = 1000


def main() -> None:
    """Run one episode of each seed; actions are uniform, from a stream of the same seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=64)
    for seed in range(parser.parse_args().episodes):
        env = MemoryMazeOriginal(size="9x9", seed=seed)
        env._simulation._frame = lambda: np.zeros((64, 64, 3), np.uint8)  # nobody looks
        env.reset()
        actions = np.random.default_rng(seed).integers(6, size=NUM_STEPS)
        total = sum(float(env.step(int(action))[1]) for action in actions)
        print(seed, int(total), flush=True)  # noqa: T201
        env.close()
    # OSMesa complains when Python ends in the usual way.
    os._exit(0)


if __name__ == "__main__":
    main()
