"""Training on one process and on several: end-to-end steps/s, strong and weak scaling.

python tests/bench/scale.py --tasks TMaze,MemoryMaze --processes 1,2 --compile

Strong scaling keeps num_envs, weak scaling keeps num_envs per process. The row `threads` is one
process with as many threads as the largest number of processes. Every case trains `--iterations`
iterations, the cases in turns, `--rounds` times. The table shows the median over rounds of the
median over iterations, without the first two. Efficiency is the speed over N times the speed of the
smallest number of processes, with the same N for `threads`.
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
    """strong, weak or threads."""
    size: int
    """Processes, or threads of one process."""

    def options(self, arguments: argparse.Namespace) -> list[str]:
        """The run's options."""
        base = [f"env={self.task}", "device=cpu", f"compile={str(arguments.compile).lower()}"]
        config = compose_config(base)
        num_envs = config.num_envs * (self.size if self.scaling == "weak" else 1)
        num_processes, num_threads = self.size, 1
        if self.scaling == "threads":
            num_processes, num_threads = 1, self.size
        minibatches = config.ppo.num_minibatches
        steps = num_envs * config.ppo.rollout_length * arguments.iterations
        return [
            *base, f"num_envs={num_envs}", f"ppo.num_minibatches={minibatches}",
            f"num_processes={num_processes}", f"num_threads={num_threads}",
            f"total_steps={steps}", "stagger_steps=0",
        ]  # fmt: skip


def steps_per_second(case: Case, arguments: argparse.Namespace) -> float:
    """The median over a run's iterations."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "mtxl_rl.train", *case.options(arguments)]
        subprocess.run([*command, f"run_dir={run_dir}"], check=True, capture_output=True)
        rows = read_rows(run_dir)[WARM_UP:]
    return statistics.median(float(row["charts/SPS"] or 0) for row in rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="TMaze,MemoryMaze")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.processes.split(",")]
    print("| task | scaling | N | steps/s | efficiency |\n|---|---|---|---|---|")
    for task in arguments.tasks.split(","):
        cases = [Case(task, "strong", size) for size in sizes]
        cases += [Case(task, "weak", size) for size in sizes[1:]]
        cases += [Case(task, "threads", sizes[-1])]
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
