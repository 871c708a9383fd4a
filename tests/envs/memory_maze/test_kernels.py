"""Tests of how the inner loops are compiled."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from mtxl_rl.envs import memory_maze

WALK = """
import hashlib
import numpy as np
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
env = MemoryMazeVectorEnv(16, config=MemoryMazeConfig(num_threads=1, textures="procedural"), seed=0)
images = [env.reset(seed=0)[0]]
actions = np.random.default_rng(0).integers(0, 6, (100, 16))
images += [env.step(action)[0] for action in actions]
print(hashlib.sha256(np.stack(images).tobytes() + env.walkers().tobytes()).hexdigest())
"""


def test_no_kernel_may_reorder_sums() -> None:
    """Fastmath lets a process that compiles round differently from one that loads the cache."""
    kernels = {}
    for info in pkgutil.iter_modules(memory_maze.__path__):
        if info.name != "__main__":
            module = importlib.import_module(f"{memory_maze.__name__}.{info.name}")
            kernels |= {k: v for k, v in vars(module).items() if isinstance(v, Dispatcher)}
    assert "move_walker" in kernels
    assert [name for name, each in kernels.items() if each.targetoptions.get("fastmath")] == []


@pytest.mark.slow
def test_a_process_that_compiles_equals_one_that_loads_the_cache(tmp_path: Path) -> None:
    """Walkers and pictures are equal to the bit, so a resumed run is, too."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, cached = (
        subprocess.run(
            [sys.executable, "-c", WALK],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert compiled == cached
