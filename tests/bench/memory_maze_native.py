"""Steps per second, resets and memory of the native Memory Maze and of the original.

    python tests/bench/memory_maze_native.py --size 9x9 --seconds 3

Random actions, pictures included. Every line of the first table is measured in turns, and medians
are shown: per core is per second of the process's CPU time. The original runs in the same program,
as the package has it, if it is installed: one process, and one for each core.
"""

import argparse
import ctypes
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

BATCHES = (16, 64, 256, 1024)
REPEATS = 3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="9x9")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    args = parser.parse_args()
    num_cores = len(os.sched_getaffinity(0))
    original = print_original(args.size, args.seconds, num_cores)
    print(f"Memory Maze {args.size}, medians of {REPEATS} measurements of {args.seconds} s")
    print("| environments | threads | steps/s | steps/s per core | times the original |")
    print("|---|---|---|---|---|")
    rows = [(batch, threads) for batch in BATCHES for threads in dict.fromkeys((1, num_cores))]
    measured: dict[tuple[int, int], list[tuple[float, float]]] = {row: [] for row in rows}
    for _ in range(REPEATS):
        for (batch, threads), rates in measured.items():
            rates.append(measure(args.size, batch, threads, args.seconds))
    for (batch, threads), rates in measured.items():
        wall, cpu = (statistics.median(column) for column in zip(*rates, strict=True))
        times = f"{cpu / original:.0f}" if original else "not installed"
        print(f"| {batch} | {threads} | {wall:,.0f} | {cpu:,.0f} | {times} |")
    print_parts(args.size)
    print_memory(args.size)


def make(size: str, num_envs: int, num_threads: int, *, copy: bool = True) -> MemoryMazeVectorEnv:
    """An environment that was reset."""
    config = MemoryMazeConfig(size=size, num_threads=num_threads)
    env = MemoryMazeVectorEnv(num_envs, config=config, seed=0, copy=copy)
    env.reset()
    return env


def measure(size: str, num_envs: int, num_threads: int, seconds: float) -> tuple[float, float]:
    """Steps a second, by the clock and by the process's CPU time."""
    env, rng = make(size, num_envs, num_threads), np.random.default_rng(0)
    for _ in range(3):
        env.step(rng.integers(6, size=num_envs))
    start, start_cpu, num_calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        env.step(rng.integers(6, size=num_envs))
        num_calls += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    env.close()
    return num_calls * num_envs / wall, num_calls * num_envs / cpu


ORIGINAL = """
import sys, time
from mtxl_rl.envs.memory_maze_original.original_packages import import_packages
import_packages()
from memory_maze import tasks
env = getattr(tasks, f"memory_maze_{sys.argv[1]}")(seed=0, image_only_obs=True)
env.reset()
start, start_cpu, num_steps = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - start < float(sys.argv[2]):
    env.step(num_steps % 6)
    num_steps += 1
wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
print(num_steps / wall, num_steps / cpu, flush=True)
"""


def print_original(size: str, seconds: float, num_cores: int) -> float | None:
    """Print the untouched package's speed, one process alone and one a core; that of one core."""
    if importlib.util.find_spec("dm_control") is None:
        return None
    alone, per_core = measure_original(size, seconds, 1)
    together, _ = measure_original(size, seconds, num_cores)
    print(
        f"the original package: {per_core:.0f} steps/s per core; by the clock {alone:.0f} in one "
        f"process, {together:.0f} in {num_cores} processes"
    )
    return per_core


def measure_original(size: str, seconds: float, num_processes: int) -> tuple[float, float]:
    """Steps a second of all processes by the clock, and of one by its CPU time."""
    command = [sys.executable, "-c", ORIGINAL, size, str(seconds)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(num_processes)
    ]
    rates = []
    for process in running:
        output, _ = process.communicate()
        # OSMesa complains when Python ends, so the last line counts and not how it ended.
        rates.append([float(rate) for rate in output.splitlines()[-1].split()])
    walls, cpus = zip(*rates, strict=True)
    return sum(walls), statistics.mean(cpus)


def print_parts(size: str) -> None:
    """Microseconds of each part of a step, for 64 environments on one thread."""
    env, rng = make(size, 64, 1), np.random.default_rng(0)
    parts: dict[str, list[float]] = {"step": [], "picture": [], "reset": []}
    for _ in range(60):
        actions = rng.integers(6, size=64)
        times = [time.perf_counter()]
        env.step(actions)
        times.append(time.perf_counter())
        env.observe()
        times.append(time.perf_counter())
        step, picture = np.diff(times) / 64 * 1e6
        parts["step"].append(step)
        parts["picture"].append(picture)
    for _ in range(5):
        start = time.perf_counter()
        for stream in env._streams:
            stream.next_episode()
        per_reset = (time.perf_counter() - start) / 64 * 1e6
        parts["reset"].append(per_reset / env.config.steps_per_episode)
    print("\n| part | us per step, median |")
    print("|---|---|")
    for name, values in parts.items():
        print(f"| {name} | {statistics.median(values):.2f} |")


def resident_bytes() -> int:
    """This process's resident set (Linux), without what malloc keeps of what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def print_memory(size: str, num_envs: int = 2048) -> None:
    """Bytes that one more environment takes, where a batch draws into the same pictures."""
    make(size, 1, 1)  # compiles, and loads the textures
    before = resident_bytes()
    env = make(size, num_envs, 1, copy=False)
    for _ in range(70):  # until all next mazes are made
        env.step(np.zeros(num_envs, np.int64))
    whole = (resident_bytes() - before) / num_envs / 1024
    picture = env.single_observation_space.shape[0] ** 2 * 3 / 1024
    print(
        f"\none more environment: {whole:.1f} KB, {picture:.0f} KB of them its picture; with "
        f"copy=True another {picture:.0f} KB while the pictures before are held"
    )


if __name__ == "__main__":
    main()
