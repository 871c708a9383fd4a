"""Steps per second of the T-maze, bare and with the checks around it.

python tests/bench/tmaze.py
"""

import time

import numpy as np

from mtxl_rl.envs.checked import CheckedVectorEnv
from mtxl_rl.envs.tmaze import TMaze

SECONDS = 0.5


def steps_per_second(env: TMaze | CheckedVectorEnv) -> float:
    """Environment steps in a second, the best of three measurements."""
    env.reset()
    actions = np.zeros(env.num_envs, dtype=np.int64)
    rates = []
    for _ in range(3):
        num_steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            for _ in range(100):
                env.step(actions)
            num_steps += 100 * env.num_envs
        rates.append(num_steps / elapsed)
    return max(rates)


def main() -> None:
    """Print the table."""
    print("| environments | bare, steps/s | checked, steps/s |")
    print("|---|---|---|")
    for num_envs in (16, 64, 256, 1024):
        bare = steps_per_second(TMaze(num_envs))
        checked = steps_per_second(CheckedVectorEnv(TMaze(num_envs)))
        print(f"| {num_envs} | {bare:,.0f} | {checked:,.0f} |")


if __name__ == "__main__":
    main()
