"""One row's step of a policy: eager, compiled, and exported, in turns.

python tests/bench/acting.py                    base model, windows of 64 and 1,024
python tests/bench/acting.py --width 64 --layers 2 --windows 64

From the observation (8 numbers) to the drawn action, with full windows, on one thread. `exported`
is `mtxl_rl.export`'s file with weights of float32 and of bfloat16. Medians of rounds in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch

from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.agents.transition import PolicyInputs, observation_shapes
from mtxl_rl.runtime.compile import compile_acting
from mtxl_rl.runtime.exported_policy import ExportedPolicy
from mtxl_rl.runtime.exported_step import export_policy, narrowed
from mtxl_rl.torso import TorsoConfig

OBSERVATION = gymnasium.spaces.Box(-1, 1, (8,), np.float32)
ACTION = gymnasium.spaces.Discrete(4)


def step_of(policy: Policy) -> Callable[[], object]:
    """A step of the policy as a run takes it."""
    generator = torch.Generator().manual_seed(0)
    cache = policy.prefill(policy.torso.initial_state(1))
    inputs = PolicyInputs(
        {"obs": torch.randn(1, 8)},
        torch.zeros(1, 1, dtype=torch.long),
        torch.zeros(1),
        torch.zeros(1, dtype=torch.bool),
    )
    return lambda: policy.act(inputs, cache, policy.action_head.noise(1, generator))


def exported(policy: Policy, folder: Path, name: str) -> Callable[[], object]:
    """A step of the policy's file."""
    path = folder / f"{name}.pt2"
    export_policy(policy, observation_shapes(OBSERVATION, episode_step=False), path)
    agent, observation = ExportedPolicy(path), np.ones(8, dtype=np.float32)
    return lambda: agent.act(observation)


def works_of(torso: TorsoConfig, folder: Path) -> dict[str, Callable[[], object]]:
    """A step by name."""
    torch.manual_seed(0)
    eager, compiled = (
        Policy(OBSERVATION, ACTION, torso=torso, policy=PolicyConfig()).eval() for _ in range(2)
    )
    compile_acting(compiled)
    return {
        "eager": step_of(eager),
        "compiled": step_of(compiled),
        "exported, float32": exported(eager, folder, f"wide_{torso.window_length}"),
        "exported, bfloat16": exported(narrowed(eager), folder, f"narrow_{torso.window_length}"),
    }


def time_in_turns(
    works: dict[tuple[str, int], Callable[[], object]], arguments: argparse.Namespace
) -> dict[tuple[str, int], float]:
    """Median milliseconds of a step of each."""
    clock = time.process_time if arguments.cpu else time.perf_counter
    rounds: dict[tuple[str, int], list[float]] = {key: [] for key in works}
    for work in works.values():  # Compiles; and fills the windows.
        for _ in range(max(arguments.windows) + 64):
            work()
    for _ in range(arguments.rounds):
        for key, work in works.items():
            begin = clock()
            for _ in range(arguments.steps):
                work()
            rounds[key].append(1000 * (clock() - begin) / arguments.steps)
    return {key: statistics.median(times) for key, times in rounds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--segment", type=int, default=32)
    parser.add_argument("--windows", type=int, nargs="*", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="of a round")
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    arguments = parser.parse_args()
    windows: list[int] = arguments.windows
    torch.set_num_threads(1)
    works = {}
    with tempfile.TemporaryDirectory() as folder:
        for window in windows:
            torso = TorsoConfig(
                width=arguments.width,
                num_layers=arguments.layers,
                num_heads=max(4, arguments.width // 32),
                window_length=window,
                segment_length=arguments.segment,
            )
            works |= {(name, window): w for name, w in works_of(torso, Path(folder)).items()}
        medians = time_in_turns(works, arguments)
    print(f"width {arguments.width}, {arguments.layers} layers, one row, one thread, ms a step")
    print(f"| step | {' | '.join(f'window {w:,}' for w in windows)} | last / first |")
    print("|---" * (len(windows) + 2) + "|")
    for name in dict.fromkeys(name for name, _ in medians):
        times = [medians[name, window] for window in windows]
        print(f"| {name} | {' | '.join(f'{each:.2f}' for each in times)} | "
              f"{times[-1] / times[0]:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
