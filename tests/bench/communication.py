"""Bytes and time of the gradients' all-reduce on many GPUs, computed and not measured.

python tests/bench/communication.py

Prints the table of docs/scaling.md, under the assumptions of `Assumptions`. Parameters are counted
on T-maze.
"""

import math
from contextlib import closing
from dataclasses import dataclass

from mtxl_rl.build import build_policy
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env

MODELS = ("base", "large")
GPUS = (8, 64, 512)


@dataclass(frozen=True)
class Assumptions:
    """A cluster of machines with 8 GPUs, and the share of a minibatch that each GPU computes."""

    machine_size: int = 8
    local_bandwidth: float = 300e9
    """Bytes/s of a GPU within its machine."""
    local_latency: float = 5e-6
    """Seconds per hop within a machine."""
    bandwidth: float = 50e9
    """Bytes/s of a GPU between machines: 400 Gbit/s."""
    latency: float = 10e-6
    """Seconds per hop between machines."""
    flops: float = 100e12
    """Floating-point operations/s that a GPU achieves."""
    tokens: int = 512 * 128 // 4
    """Steps of a GPU in a minibatch: 512 environments x 128 steps / 4 minibatches."""


def num_parameters(model: str) -> int:
    """Parameters of a policy on T-maze."""
    config = compose_config(["env=TMaze", f"model={model}", "device=cpu"])
    with closing(make_vector_env(config.env, num_envs=1, seed=0)) as env:
        policy = build_policy(config, env, config.torch_device())
    return sum(parameter.numel() for parameter in policy.parameters())


def bytes_sent(num_bytes: float, num_gpus: int) -> float:
    """Bytes that each GPU sends to sum `num_bytes` over all of them."""
    return 2 * (num_gpus - 1) / num_gpus * num_bytes


def reduce_seconds(num_bytes: float, num_gpus: int, assumptions: Assumptions) -> float:
    """Seconds of one all-reduce: a ring within a machine, trees between machines."""
    sent = bytes_sent(num_bytes, num_gpus)
    if num_gpus <= assumptions.machine_size:
        hops = 2 * (num_gpus - 1)
        return sent / assumptions.local_bandwidth + assumptions.local_latency * hops
    return sent / assumptions.bandwidth + assumptions.latency * 2 * math.log2(num_gpus)


def compute_seconds(parameters: int, assumptions: Assumptions) -> float:
    """Seconds of a forward and backward pass over a GPU's share of a minibatch."""
    return 6 * parameters * assumptions.tokens / assumptions.flops


def main() -> None:
    """Print the table."""
    assumptions = Assumptions()
    print(
        "| `model=` | GPUs | MB of gradients | MB sent per GPU and update | ms all-reduce | "
        "ms computing | share of all-reduce |\n|---|---|---|---|---|---|---|"
    )
    for model in MODELS:
        parameters = num_parameters(model)
        gradient_bytes = 4 * parameters
        for num_gpus in GPUS:
            reduce = reduce_seconds(gradient_bytes, num_gpus, assumptions)
            compute = compute_seconds(parameters, assumptions)
            print(
                f"| {model} | {num_gpus} | {gradient_bytes / 1e6:.1f} "
                f"| {bytes_sent(gradient_bytes, num_gpus) / 1e6:.1f} | {reduce * 1e3:.2f} "
                f"| {compute * 1e3:.1f} | {reduce / (reduce + compute):.0%} |"
            )


if __name__ == "__main__":
    main()
