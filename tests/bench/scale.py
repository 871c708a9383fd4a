"""Training on one process and on several: end-to-end steps/s, strong and weak scaling.

python tests/bench/scale.py --tasks TMaze,MemoryMaze --processes 1,2 --compile

Strong scaling keeps num_envs, weak scaling keeps num_envs per process. The row `threads` is one
process with as many threads as the largest number of processes. Every case trains `--iterations`
iterations, the cases in turns, `--rounds` times. ppo.target_kl=0, so that every case makes all
updates. The table shows the median over rounds of the median over iterations, without the first
two. Efficiency is the speed over N times the speed of the smallest number of processes, with the
same N for `threads` and `old`.

The row `old` is compiled and has as many threads, in a checkout of commit 7bbc830, whose learner
splits its minibatches among threads:

git worktree add ../old 7bbc830
python tests/bench/scale.py --tasks MemoryMaze --processes 1,2 --compile --old ../old
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from mtxl_rl.compose import compose_config
from mtxl_rl.tracking.metrics import read_rows

WARM_UP = 2
"""Iterations that are not counted: they compile and allocate."""


class Case(NamedTuple):
    """One way to train a task."""

    task: str
    scaling: str
    """strong, weak, threads or old."""
    size: int
    """Processes, or threads of one process."""

    def options(self, arguments: argparse.Namespace) -> list[str]:
        """The run's options."""
        is_compiled = arguments.compile or self.scaling == "old"
        base = [f"env={self.task}", "device=cpu", f"compile={str(is_compiled).lower()}"]
        config = compose_config(base)
        num_envs = config.num_envs * (self.size if self.scaling == "weak" else 1)
        minibatches = config.ppo.num_minibatches
        steps = num_envs * config.ppo.rollout_length * arguments.iterations
        base += [
            f"num_envs={num_envs}", f"ppo.num_minibatches={minibatches}", "ppo.target_kl=0",
            f"total_steps={steps}", "stagger_steps=0",
        ]  # fmt: skip
        if self.scaling == "old":  # Without num_processes=.
            return [*base, f"num_threads={self.size}"]
        if self.scaling == "threads":
            return [*base, "num_processes=1", f"num_threads={self.size}"]
        return [*base, f"num_processes={self.size}", "num_threads=1"]


def steps_per_second(case: Case, arguments: argparse.Namespace) -> float:
    """The median over a run's iterations."""
    checkout, speed = None, "charts/SPS"
    if case.scaling == "old":
        checkout, speed = arguments.old, "time/env_steps_per_second"  # The name in that checkout.
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "mtxl_rl.train", *case.options(arguments)]
        command += [f"run_dir={run_dir}"]
        subprocess.run(command, cwd=checkout, check=True, capture_output=True)
        rows = read_rows(run_dir)[WARM_UP:]
    return statistics.median(float(row[speed] or 0) for row in rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="TMaze,MemoryMaze")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--old", type=Path, help="a checkout of commit 7bbc830")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.processes.split(",")]
    print("| task | scaling | N | steps/s | efficiency |\n|---|---|---|---|---|")
    for task in arguments.tasks.split(","):
        cases = [Case(task, "strong", size) for size in sizes]
        cases += [Case(task, "weak", size) for size in sizes[1:]]
        cases += [Case(task, "threads", sizes[-1])]
        cases += [Case(task, "old", sizes[-1])] if arguments.old else []
        rounds: dict[Case, list[float]] = {case: [] for case in cases}
        for _ in range(arguments.rounds):
            for case in cases:
                rounds[case].append(steps_per_second(case, arguments))
        speeds = {case: statistics.median(values) for case, values in rounds.items()}
        alone = speeds[cases[0]]
        for case, speed in speeds.items():
            efficiency = speed / alone / (case.size / sizes[0])
            print(f"| {task} | {case.scaling} | {case.size} | {speed:,.0f} | {efficiency:.0%} |")


if __name__ == "__main__":
    main()
