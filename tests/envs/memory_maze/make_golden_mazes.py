"""Writes golden_mazes.npz from the package labmaze: the first mazes of some seeds.

    python tests/envs/memory_maze/make_golden_mazes.py

Tests compare with it where labmaze is not installed.
"""

from pathlib import Path

import numpy as np
from conftest import Labmaze

from mtxl_rl.envs.memory_maze.layout import maze_settings
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES

GOLDEN_SIZES = ("5x5", "7x7", "9x9", "11x11", "13x13", "15x15", "21x21")
NUM_SEEDS, NUM_MAZES = 16, 3


def main() -> None:
    """Write the file next to this script: [seeds, mazes, 2, side, side] for each size."""
    golden = {}
    for size in GOLDEN_SIZES:
        settings = maze_settings(SIZES[size])
        generators = [Labmaze(settings, seed=seed) for seed in range(NUM_SEEDS)]
        golden[size] = [[each.next_maze() for _ in range(NUM_MAZES)] for each in generators]
    arrays = {size: np.array(mazes) for size, mazes in golden.items()}
    np.savez_compressed(Path(__file__).with_name("golden_mazes.npz"), **arrays)


if __name__ == "__main__":
    main()
