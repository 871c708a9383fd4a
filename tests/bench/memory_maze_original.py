"""Steps per second and memory of the original Memory Maze: the untouched package and ours.

    python tests/bench/memory_maze_original.py --size 9x9 --steps 200 --repeats 3

Every figure comes from a process of its own, the variants take turns, and the table shows medians.
Random actions; resets are timed separately. Memory: the resident set after the steps of one
environment, and what each further one of the same process adds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginal, make_memory_maze_original
from mtxl_rl.envs.memory_maze_original.original_packages import import_packages

NUM_ACTIONS = 6
NUM_WORKERS = 2


def main() -> None:
    """Run one variant and print its figures as JSON, or run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="9x9")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", choices=sorted(VARIANTS))
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(VARIANTS[args.variant](args.size, args.steps)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(args.repeats):
        for name, runs in results.items():
            runs.append(run_alone(name, size=args.size, steps=args.steps))
    print_table(results, size=args.size, repeats=args.repeats)


def run_alone(variant: str, *, size: str, steps: int) -> dict[str, float]:
    """The figures of one variant, measured in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--variant",
        variant,
        "--size",
        size,
        "--steps",
        str(steps),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure_single(make: Callable[[int], Any], steps: int) -> dict[str, float]:
    """One environment's speed, then the memory of two more."""
    rng = np.random.default_rng(0)
    before = resident_megabytes()
    env = make(0)
    env.reset()
    start = time.perf_counter()
    env.reset()
    reset_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(steps):
        env.step(int(rng.integers(NUM_ACTIONS)))
    seconds = time.perf_counter() - start
    first = resident_megabytes()
    more = [make(seed) for seed in (1, 2)]
    for other in more:
        other.reset()
        other.step(0)
    further = (resident_megabytes() - first) / len(more)
    for each in (env, *more):
        each.close()
    return {
        "steps/s": steps / seconds,
        "reset s": reset_seconds,
        "first MB": first - before,
        "next MB": further,
    }


def measure_untouched(size: str, steps: int) -> dict[str, float]:
    """The package's own environment."""
    import_packages()
    from memory_maze import tasks

    make = getattr(tasks, f"memory_maze_{size}")
    return measure_single(lambda seed: make(seed=seed, image_only_obs=True), steps)


def measure_ours(size: str, steps: int) -> dict[str, float]:
    """Our environment in this process."""
    import_packages()
    return measure_single(lambda seed: MemoryMazeOriginal(size=size, seed=seed), steps)


def measure_vector(size: str, steps: int) -> dict[str, float]:
    """Four environments in two workers; steps of all four are counted."""
    num_envs = 4
    rng = np.random.default_rng(0)
    vector = make_memory_maze_original(
        size=size, num_envs=num_envs, seed=0, num_workers=NUM_WORKERS
    )
    vector.reset()
    num_calls = max(1, steps // 2)
    start = time.perf_counter()
    for _ in range(num_calls):
        vector.step(rng.integers(NUM_ACTIONS, size=num_envs))
    seconds = time.perf_counter() - start
    vector.close()
    return {"steps/s": num_calls * num_envs / seconds}


def resident_megabytes() -> float:
    """This process's resident set (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def print_table(results: dict[str, list[dict[str, float]]], *, size: str, repeats: int) -> None:
    """One row a variant."""
    columns = ["steps/s", "reset s", "first MB", "next MB"]
    print(f"Memory Maze {size}, medians of {repeats} runs")
    print(f"{'variant':34}" + "".join(f"{column:>10}" for column in columns) + f"{'times':>8}")
    baseline = statistics.median(run["steps/s"] for run in results["untouched"])
    for name, runs in results.items():
        row = f"{LABELS[name]:34}"
        for column in columns:
            values = [run[column] for run in runs if column in run]
            row += f"{statistics.median(values):10.2f}" if values else f"{'':10}"
        speed = statistics.median(run["steps/s"] for run in runs)
        print(row + f"{speed / baseline:8.1f}")


VARIANTS: dict[str, Callable[[str, int], dict[str, float]]] = {
    "untouched": measure_untouched,
    "ours": measure_ours,
    "vector": measure_vector,
}
LABELS = {
    "untouched": "memory-maze, untouched",
    "ours": "ours, one process",
    "vector": f"ours, 4 mazes in {NUM_WORKERS} workers",
}

if __name__ == "__main__":
    main()
