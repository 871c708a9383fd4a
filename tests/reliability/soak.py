"""A long run with resumes: memory, speed, files, threads and the ratio must not drift.

python tests/reliability/soak.py --steps 100000000

A small agent trains on TMaze in this process, in parts: each part resumes the run where the last
one ended. After each iteration the process's memory, file descriptors and threads are read, and its
CPU time, so that other programs of the machine do not count. Slopes are least squares over all but
the first fifth.

Then the trained agent acts for many steps on random observations in four rows, which start their
last episode at different steps. The torso's state, updated step by step in float32, is compared
with a computation of that episode from its first step in float64.
"""

import argparse
import copy
import itertools
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from counts import Counts, Outcome, run_program
from disk import TINY
from torch import Tensor

import mtxl_rl
from mtxl_rl.training.callbacks import Callback

PARTS = 5
MAX_GROWTH = 100 * 2**20
"""Bytes that the process may grow after the first fifth."""
MAX_RATIO_DEVIATION = 1e-3
MAX_STATE_DIFFERENCE = 1e-3
"""Relative to the largest number of the float64 state."""
CHUNK = 1000


class Sample(NamedTuple):
    """The process after an iteration."""

    step: int
    resident: int
    """Bytes of memory."""
    cpu_seconds: float
    files: int
    threads: int
    ratio_deviation: float


class Sampler(Callback):
    """Reads the process after each iteration."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def on_iteration(self, metrics: Any) -> None:  # noqa: ANN401
        """Read it."""
        self.samples.append(
            Sample(
                int(metrics["step"]),
                resident_bytes(),
                time.process_time(),
                count_of("fd"),
                max(count_of("task"), threading.active_count()),
                float(metrics["losses/ratio_deviation"]),
            )
        )


def resident_bytes() -> int:
    """The memory of this process; without /proc, the most it has had."""
    path = Path("/proc/self/statm")
    if path.exists():
        return int(path.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def count_of(name: str) -> int:
    """How many file descriptors (fd) or threads (task) this process has; 0 without /proc."""
    path = Path("/proc/self") / name
    return len(list(path.iterdir())) if path.exists() else 0


def train(steps: int) -> tuple[list[Sample], mtxl_rl.Agent]:
    """Train in parts; what was sampled, and the agent."""
    sampler, options = Sampler(), dict(part.split("=") for part in TINY)
    typed = {name: yaml.safe_load(value) for name, value in options.items()}
    typed |= {"checkpoint_seconds": 60, "env.corridor_length": 9}
    for part in range(1, PARTS + 1):
        total = max(64 * part, round(steps * part / PARTS))
        if part == 1:
            env = typed.pop("env")
            run = mtxl_rl.train(
                env, typed, run_dir="run", total_steps=total, callbacks=sampler, verbose=False
            )
        else:
            run = mtxl_rl.train(resume="run", total_steps=total, callbacks=sampler, verbose=False)
    return sampler.samples, run.agent


def slope(x: list[float], y: list[float]) -> float:
    """Of a line by least squares."""
    return float(np.polyfit(np.array(x) - x[0], y, 1)[0]) if len(x) > 1 else 0.0


def speeds(samples: list[Sample]) -> list[float]:
    """Steps per CPU second in each fifth."""
    edges = [samples[round(i * (len(samples) - 1) / 5)] for i in range(6)]
    return [
        (after.step - before.step) / max(after.cpu_seconds - before.cpu_seconds, 1e-9)
        for before, after in itertools.pairwise(edges)
    ]


def act(agent: mtxl_rl.Agent, num_steps: int, seed: int) -> tuple[float, str]:
    """Act on random observations; the largest relative difference of the state, and which."""
    torso, inputs = agent.policy.torso, list[Tensor]()
    decode_step = torso.decode_step

    def recorded(x: Tensor, cache: Any, is_first: Tensor) -> Tensor:  # noqa: ANN401
        inputs.append(x)
        return decode_step(x, cache, is_first)

    rng, starts = np.random.default_rng(seed), (0, num_steps // 2, num_steps - 1000, num_steps - 10)
    cache = agent.new_cache(len(starts))
    torso.decode_step = recorded  # type: ignore[method-assign]
    shape = (len(starts), *(agent.observation_space.shape or ()))
    for step in range(num_steps):
        observation, reward = rng.random(shape, np.float32), rng.random(len(starts))
        is_first = np.array([step in (0, start) for start in starts])
        agent.act(observation, cache, is_first, reward=reward)
    torso.decode_step = decode_step  # type: ignore[method-assign]
    exact, sequence = copy.deepcopy(torso).double(), torch.stack(inputs, dim=1)
    largest, where = 0.0, ""
    for row, start in enumerate(starts):
        state, x = exact.initial_state(1), sequence[row : row + 1, max(start, 0) :].double()
        with torch.no_grad():
            for part in x.split(CHUNK, dim=1):
                is_first = torch.zeros(part.shape[:2], dtype=torch.bool)
                _, state = exact(part, state, is_first)
        acted = cache.torso.state().rows([row])
        for name, value, expected in zip(state._fields, acted, state, strict=True):
            difference = float(
                (value - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
            )
            if not difference <= largest:
                largest, where = difference, f"{name} after {x.shape[1]} steps"
    return largest, where


def check(counts: Counts, kind: str, is_good: bool, detail: str) -> None:
    """Count, and print, what was measured."""
    print(f"{kind}: {detail}", flush=True)
    counts.add(kind, "", Outcome("held" if is_good else "failed", detail))


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Train, act, and report."""
    torch.set_num_threads(1)
    samples, agent = train(arguments.steps)
    late = samples[len(samples) // 5 :]
    counts = Counts(f"soak: {samples[-1].step} steps in {PARTS} parts")
    growth = late[-1].resident - late[0].resident
    per_step = slope([float(s.step) for s in late], [float(s.resident) for s in late])
    check(counts, "memory", growth <= MAX_GROWTH,
          f"{samples[-1].resident / 1e6:.0f} MB in the end, {growth / 1e6:+.1f} MB after the first "
          f"fifth, slope {per_step * 1e7 / 1e6:+.1f} MB per 1e7 steps")  # fmt: skip
    fifths = speeds(samples)
    shown = ", ".join(f"{each:.0f}" for each in fifths)
    is_steady = fifths[-1] > fifths[1] / 2
    check(counts, "speed", is_steady, f"steps per CPU second in each fifth {shown}")
    for name in ("files", "threads"):
        numbers = [getattr(sample, name) for sample in late]
        check(counts, name, numbers[-1] <= numbers[0] and max(numbers) <= min(numbers) + 2,
              f"{min(numbers)} to {max(numbers)}, {numbers[-1]} in the end")  # fmt: skip
    ratio = max(sample.ratio_deviation for sample in samples)
    check(counts, "ratio", ratio <= MAX_RATIO_DEVIATION, f"largest deviation {ratio:.1e}")
    difference, where = act(agent, max(arguments.acting, 2000), arguments.seed)
    check(counts, "state", difference <= MAX_STATE_DIFFERENCE,
          f"after {arguments.acting} steps of acting, float32 differs from float64 by "
          f"{difference:.1e} of the largest number ({where})")  # fmt: skip
    return [counts]


if __name__ == "__main__":
    run_program(__doc__, {"steps": 10_000_000, "acting": 100_000}, run)
