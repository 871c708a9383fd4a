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

WORKER = str(Path(__file__).with_name("walk_worker.py"))


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
            [sys.executable, WORKER],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert compiled == cached
