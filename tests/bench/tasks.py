"""Steps per CPU second of every built-in task, bare and with the checks around it.

python tests/bench/tasks.py [NUM_ENVS]
"""

import argparse
import time

import numpy as np

from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.vector_task import VectorTask
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv

SECONDS = 0.3
NUM_ROUNDS = 3
NUM_ACTION_BATCHES = 64


def steps_per_second(env: VectorTask | CheckedVectorEnv) -> float:
    """Environment steps in a CPU second under random actions, the median of the rounds."""
    rng = np.random.default_rng(0)
    size = (NUM_ACTION_BATCHES, env.num_envs)
    actions = rng.integers(env.single_action_space.n, size=size)  # type: ignore[attr-defined]
    env.reset()
    for action in actions:  # what is compiled or laid out at first use is not timed
        env.step(action)
    rates = []
    for _ in range(NUM_ROUNDS):
        num_steps, start = 0, time.process_time()
        while (elapsed := time.process_time() - start) < SECONDS:
            for action in actions:
                env.step(action)
            num_steps += actions.size
        rates.append(num_steps / elapsed)
    return float(np.median(rates))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("num_envs", metavar="NUM_ENVS", type=int, nargs="?", default=256,
                        help="stepped together, 256 unless given")  # fmt: skip
    num_envs: int = parser.parse_args().num_envs
    if num_envs < 1:
        parser.error(f"NUM_ENVS={num_envs} must be at least 1")
    print(f"| task, {num_envs} environments | bare, steps/s | checked, steps/s |")
    print("|---|---|---|")
    for name, task in TASKS.items():
        for settings, config in zip(task.variants, task.configs(), strict=True):
            env = task.task_class(config, num_envs=num_envs, seed=0)  # type: ignore[call-arg]
            bare, checked = steps_per_second(env), steps_per_second(CheckedVectorEnv(env))
            label = " ".join([name, *map(str, settings.values())])
            print(f"| {label} | {bare:,.0f} | {checked:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
