"""Training end to end, every torso and sb3-contrib's RecurrentPPO: one table for each task.

python tests/bench/train.py --tasks TMaze,MiniGrid-Memory,MemoryMaze --threads 2

All systems have the same sizes, environments, steps per rollout, epochs, minibatches and threads.
They start as a training run does, spread over their episodes, which is not timed (and takes long
with MemoryMaze-original); they take their iterations in turns, and medians are shown. The columns
are steps/s end to end, and of each part alone: the environments' step, the rest of acting, and the
learner's samples/s, which are environment steps x epochs per second of learning. The peer is left
out where it is not installed: `pip install -r tests/bench/requirements.txt`. To it an episode
begins with one more step, the reset row of NEXT_STEP autoreset.

The system `sb3-package`, for `--tasks MemoryMaze` alone, is what the peer's users run: RecurrentPPO
around the package memory-maze itself, in Stable-Baselines3's SubprocVecEnv. That has a process for
each environment, and each takes 1.2 GB: 32 of them take 39 GB. So `--processes` sets their number,
8 by default, and its rollouts and minibatches are as much smaller as those are fewer;
its episodes start together, and none ends while it is timed. `--compile` and `--precision`
apply to this library's systems only.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

from mtxl_rl.command import choices
from mtxl_rl.compose import compose_config
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.training.run import Run

TASKS = {
    "TMaze": ["env=TMaze"],
    "MiniGrid-Memory": ["env=EnvPool", "env.id=MiniGrid-MemoryS13-v0"],
    "MemoryMaze": ["env=MemoryMaze"],
    "MemoryMaze-original": ["env=MemoryMaze-original"],
    "MiniGrid-Gymnasium": ["env=Gymnasium", "env.id=MiniGrid-MemoryS13-v0"],
}
USUAL = ("TMaze", "MiniGrid-Memory", "MemoryMaze")
"""The others are slow, and ask for more to be installed."""
TRANSFORMERS = ("mtxl", "gtrxl", "trxl")
TORSOS = (*TRANSFORMERS, "gru", "lstm", "mlp")
PEERS = ("sb3", "sb3-package")


class Seconds(NamedTuple):
    """Of one iteration."""

    total: float
    env: float
    act: float
    """All that is neither learning nor waiting for the environments."""
    learn: float


class System(NamedTuple):
    """Something that trains: its name, its weights, and one iteration of it."""

    name: str
    num_weights: int
    num_steps: int
    """Of all environments, in one iteration."""
    iterate: Callable[[], Seconds]
    report: Callable[[], str]


def config_of(task: str, torso: str, arguments: argparse.Namespace) -> TrainConfig:
    """The run that the arguments describe."""
    persistent = {"trxl": 0}.get(torso, 8)
    return compose_config([
        *TASKS[task],
        f"torso={torso}",
        f"torso.width={arguments.width}",
        f"torso.num_heads={max(4, arguments.width // 32)}",
        f"torso.num_layers={arguments.layers}",
        f"torso.window_length={arguments.window}",
        f"torso.segment_length={arguments.segment}",
        f"torso.num_persistent={persistent}",
        f"num_envs={arguments.envs}",
        f"num_threads={arguments.threads}",
        f"device={arguments.device}",
        f"policy.precision={arguments.precision}",
        f"compile={'true' if arguments.compile and torso in TRANSFORMERS else 'false'}",
        f"ppo.rollout_length={arguments.steps}",
        f"ppo.bptt_segments={arguments.steps // arguments.segment}",
        f"ppo.num_epochs={arguments.epochs}",
        f"ppo.num_minibatches={arguments.minibatches}",
        "total_steps=1_000_000_000",
    ])  # fmt: skip


def ours(task: str, torso: str, arguments: argparse.Namespace) -> System:
    """A torso in this library's PPO."""
    config = config_of(task, torso, arguments)
    seed = stream_seed(0, 0)
    run = Run(config, make_vector_env(config.env, num_envs=config.num_envs, seed=seed))
    run.start(seed=None)

    def iterate() -> Seconds:
        metrics = run.iterate()
        total = config.steps_per_iteration / metrics["charts/SPS"]
        parts = (metrics[f"time/{part}_seconds"] for part in ("env", "act", "learn"))
        return Seconds(total, *parts)

    def report() -> str:
        """Where the time of one more iteration goes."""
        with run.profiler.profile(num_steps=config.steps_per_iteration):
            run.iterate()
        return run.profiler.report

    weights = sum(parameter.numel() for parameter in run.policy.parameters())
    return System(torso, weights, config.steps_per_iteration, iterate, report)


def peer(task: str, name: str, arguments: argparse.Namespace) -> System:
    """RecurrentPPO with an LSTM of as many layers of the same width."""
    from recurrent_ppo import AsVecEnv, Peer, package_mazes

    config, title = config_of(task, "lstm", arguments), "sb3-contrib RecurrentPPO"
    if name == "sb3-package":
        env = package_mazes(arguments.processes)
        title += f", {env.num_envs} of the package memory-maze in SubprocVecEnv"
    else:
        env = AsVecEnv(
            make_vector_env(config.env, num_envs=config.num_envs, seed=stream_seed(0, 0)),
            stagger_steps=config.steps_to_stagger,
        )
    model = Peer(env, config, num_threads=arguments.threads)

    def iterate() -> Seconds:
        total, env_seconds, learn = model.iterate()
        return Seconds(total, env_seconds, total - env_seconds - learn, learn)

    return System(title, model.num_weights, model.num_steps, iterate, str)


def measure(task: str, arguments: argparse.Namespace) -> None:
    """Print a task's table."""
    systems = [
        peer(task, name, arguments) if name in PEERS else ours(task, name, arguments)
        for name in arguments.systems.split(",")
        if name not in PEERS or importlib.util.find_spec("sb3_contrib")
    ]
    rounds: list[list[Seconds]] = [[] for _ in systems]
    for turn in range(arguments.iterations + 1):
        for system, seconds in zip(systems, rounds, strict=True):
            spent = system.iterate()
            if turn:  # the first one allocates and compiles
                seconds.append(spent)
    print(f"\n{task}: {arguments.envs} environments x {arguments.steps} steps, width "
          f"{arguments.width}, {arguments.layers} layers, window {arguments.window}, "
          f"{arguments.epochs} epochs, {arguments.minibatches} minibatches, "
          f"{arguments.threads} threads, {arguments.device}")  # fmt: skip
    print("| system | weights | steps/s | env alone | acting alone | learner samples/s |")
    print("|---|---|---|---|---|---|")
    for system, seconds in zip(systems, rounds, strict=True):
        total, env, act, learn = (
            statistics.median(column) for column in zip(*seconds, strict=True)
        )
        steps = system.num_steps
        print(f"| {system.name} | {system.num_weights:,} | {steps / total:,.0f} | "
              f"{steps / env:,.0f} | {steps / act:,.0f} | "
              f"{steps * arguments.epochs / learn:,.0f} |", flush=True)  # fmt: skip
    for system in systems:
        if arguments.profile and (report := system.report()):
            print(f"\n{task}, {system.name}:\n{report}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(USUAL), help=f"of {', '.join(TASKS)}")
    parser.add_argument(
        "--systems", default=",".join([*TORSOS, "sb3"]), help=f"of {', '.join([*TORSOS, *PEERS])}"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--segment", type=int, default=32)
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--processes", type=int, default=8, help="and environments, of sb3-package")
    parser.add_argument("--steps", type=int, default=128, help="of a rollout and of a span")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the transformers")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    if "sb3-package" in arguments.systems.split(",") and arguments.tasks != "MemoryMaze":
        parser.error("sb3-package is for --tasks MemoryMaze")
    peers = [name for name in arguments.systems.split(",") if name in PEERS]
    if peers and not importlib.util.find_spec("sb3_contrib"):
        print(f"{', '.join(peers)} left out: sb3-contrib is not installed", file=sys.stderr)
    warnings.filterwarnings("ignore", module="gym|stable_baselines3|sb3_contrib")
    assert set(TORSOS) <= set(choices("torso"))
    for task in arguments.tasks.split(","):
        measure(task, arguments)


if __name__ == "__main__":
    main()
