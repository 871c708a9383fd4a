"""A long run with resumes: memory, speed, files, threads and the ratio must not drift.

python tests/reliability/soak.py --steps 100000000 --maze_steps 20000000 --acting 100000000 \
    --folder FOLDER

Small agents train on TMaze and on MemoryMaze. Each trains in five parts: a part resumes the run
where the last one ended, in the same process. After each iteration the process's memory, file
descriptors and threads are read, and its CPU time, so that other programs of the machine do not
count. With `--folder` the runs and what was read are kept there, and the same command continues
them in a new process after it was stopped. Slopes are least squares over all processes, each with a
level of its own, without the first fifth of each.

Then `pretrained/TMaze` acts for many steps on random observations, in many rows. Four of them start
their last episode at different steps. Their state of the torso, updated step by step in float32, is
compared with a computation of that episode from its first step in float64.
"""

import argparse
import copy
import itertools
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from counts import Counts, Outcome, run_program
from torch import Tensor

import mtxl_rl
from mtxl_rl.training.callbacks import Callback

AGENT = Path(__file__).parents[2] / "pretrained/TMaze"
PARTS = 5
MAX_SLOPE = 1e6
"""Bytes that the process may grow in 1e7 steps, where it makes so many."""
MAX_GROWTH = 100e6
"""Bytes that a short run may grow after its first fifth."""
LONG = 10_000_000
"""Steps from which on slopes mean something."""
MAX_RATIO_DEVIATION = 1e-5
MAX_STATE_DIFFERENCE = 1e-3
"""Relative to the largest number of the float64 state."""
ROWS = 1024
"""That act at a time; with fewer than so many steps, four."""
CHUNK = 1000
SMALL: dict[str, Any] = {
    "model": "tiny", "torso.num_layers": 1, "torso.width": 16, "torso.num_heads": 2,
    "torso.window_length": 8, "torso.segment_length": 8, "ppo.rollout_length": 32,
    "ppo.bptt_segments": 4, "ppo.num_epochs": 1, "ppo.num_minibatches": 2, "device": "cpu",
    "num_processes": 1, "logger": "none", "compile": False, "checkpoint_seconds": 60,
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "TMaze": {"num_envs": 1024, "env.corridor_length": 9},
    "MemoryMaze": {"num_envs": 256, "policy.image_encoder": "patches",
                   "env.textures": "procedural", "env.num_threads": 1},
}  # fmt: skip


class Sample(NamedTuple):
    """The process after an iteration."""

    process: int
    """Counts the processes that have continued the run."""
    step: int
    resident: int
    """Bytes of memory."""
    cpu_seconds: float
    files: int
    threads: int
    ratio_deviation: float


class Sampler(Callback):
    """Reads the process after each iteration, and appends that to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = [Sample(*row) for row in read_lines(path)]
        self.process = self.samples[-1].process + 1 if self.samples else 0

    def on_iteration(self, metrics: Any) -> None:  # noqa: ANN401
        """Read it."""
        sample = Sample(
            self.process,
            int(metrics["step"]),
            resident_bytes(),
            time.process_time(),
            count_of("fd"),
            max(count_of("task"), threading.active_count()),
            float(metrics["losses/ratio_deviation"]),
        )
        self.samples.append(sample)
        with self.path.open("a") as file:
            file.write(json.dumps(sample) + "\n")


def read_lines(path: Path) -> list[list[float]]:
    """The lines of a file of JSON, without a last one that a kill has cut; none if it is new."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


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


def train(task: str, steps: int) -> list[Sample]:
    """Train in parts, from where the folder's run ended; the samples of all its processes."""
    sampler, run_dir = Sampler(Path(f"{task}.jsonl")), Path(task)
    for part in range(1, PARTS + 1):
        total = round(steps * part / PARTS)
        options: dict[str, Any] = {"total_steps": total, "callbacks": sampler, "verbose": False}
        saved = [int(path.stem[5:]) for path in run_dir.glob("checkpoints/step_*.pt")]
        if max(saved, default=0) >= total:
            continue
        if saved:
            mtxl_rl.train(resume=run_dir, **options)
        else:
            mtxl_rl.train(task, SMALL | TASKS[task], run_dir=run_dir, **options)
    return sampler.samples


def late_parts(samples: list[Sample]) -> list[list[Sample]]:
    """The samples of each process without its first fifth, in which it warms up."""
    groups = itertools.groupby(samples, key=lambda sample: sample.process)
    parts = [list(group) for _, group in groups]
    return [part[len(part) // 5 :] for part in parts]


def slope(parts: list[list[Sample]], value: str) -> float:
    """Least squares of a value over steps, with a level for each process."""
    x = np.concatenate([centred(part, "step") for part in parts])
    y = np.concatenate([centred(part, value) for part in parts])
    return float(x @ y / max(x @ x, 1.0))


def centred(samples: list[Sample], name: str) -> Any:  # noqa: ANN401
    """A field's numbers, less their mean."""
    numbers = np.array([float(getattr(sample, name)) for sample in samples])
    return numbers - numbers.mean()


def speeds(samples: list[Sample]) -> list[float]:
    """Steps per CPU second in each fifth of a process."""
    edges = [samples[round(i * (len(samples) - 1) / 5)] for i in range(6)]
    return [
        (after.step - before.step) / max(after.cpu_seconds - before.cpu_seconds, 1e-9)
        for before, after in itertools.pairwise(edges)
    ]


def act(agent: mtxl_rl.Agent, num_steps: int, seed: int) -> tuple[float, str]:
    """Act on random observations; the largest relative difference of the state, and which.

    Args:
        agent: Acts.
        num_steps: Of all rows together.
        seed: Of the observations.
    """
    torso, inputs = agent.policy.torso, list[Tensor]()
    decode_step, num_rows = torso.decode_step, ROWS if num_steps > 1000 * ROWS else 4
    length = num_steps // num_rows
    starts = (0, length // 2, length - 1000, length - 10)

    def recorded(x: Tensor, cache: Any, is_first: Tensor) -> Tensor:  # noqa: ANN401
        inputs.append(x[: len(starts)].clone())
        return decode_step(x, cache, is_first)

    rng, cache = np.random.default_rng(seed), agent.new_cache(num_rows)
    torso.decode_step = recorded  # type: ignore[method-assign]
    shape = (num_rows, *(agent.observation_space.shape or ()))
    for step in range(length):
        observation, reward = rng.random(shape, np.float32), rng.random(num_rows)
        is_first = rng.random(num_rows) < 1e-3
        is_first[: len(starts)] = [step in (0, start) for start in starts]
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


def report(counts: Counts, samples: list[Sample]) -> None:
    """Check what was read."""
    parts = late_parts(samples)
    late, is_long = [sample for part in parts for sample in part], samples[-1].step >= LONG
    growth = max(part[-1].resident - part[0].resident for part in parts)
    per_step = slope(parts, "resident")
    held = per_step * 1e7 <= MAX_SLOPE if is_long else growth <= MAX_GROWTH
    check(counts, "memory", held,
          f"{samples[-1].resident / 1e6:.0f} MB in the end, {growth / 1e6:+.1f} MB at most "
          "after a process's first fifth, "
          f"slope {per_step * 1e7 / 1e6:+.2f} MB per 1e7 steps")  # fmt: skip
    longest = max(parts, key=len)
    fifths = speeds(longest)
    shown = ", ".join(f"{each:.0f}" for each in fifths)
    check(counts, "speed", fifths[-1] > fifths[0] / 2 or not is_long,
          f"steps per CPU second in each fifth of the longest process {shown}")  # fmt: skip
    for name in ("files", "threads"):
        numbers = [getattr(sample, name) for sample in late]
        check(counts, name, numbers[-1] <= numbers[0] and max(numbers) <= min(numbers) + 2,
              f"{min(numbers)} to {max(numbers)}, {numbers[-1]} in the end")  # fmt: skip
    ratio = max(sample.ratio_deviation for sample in samples)
    check(counts, "ratio", ratio <= MAX_RATIO_DEVIATION, f"largest deviation {ratio:.1e}")


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Train, act, and report."""
    torch.set_num_threads(1)
    tables = []
    for task, steps in (("TMaze", arguments.steps), ("MemoryMaze", arguments.maze_steps)):
        samples = train(task, steps)
        num_processes = samples[-1].process + 1
        counts = Counts(
            f"soak: {task}, {samples[-1].step} steps in {PARTS} parts and {num_processes} processes"
        )
        report(counts, samples)
        tables.append(counts)
    agent, num_steps = mtxl_rl.Agent.load(AGENT, device="cpu"), max(arguments.acting, 8000)
    difference, where = act(agent, num_steps, arguments.seed)
    check(tables[0], "state", difference <= MAX_STATE_DIFFERENCE,
          f"after {num_steps} steps of acting, float32 differs from float64 by {difference:.1e} of "
          f"the largest number ({where})")  # fmt: skip
    return tables


if __name__ == "__main__":
    sizes = {"steps": 10_000_000, "maze_steps": 2_000_000, "acting": 10_000_000}
    run_program(__doc__, sizes, run)
