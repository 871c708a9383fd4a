"""What the host launches: operations per step of acting and per minibatch, counted on the CPU.

python tests/bench/launches.py env=MemoryMaze model=base policy.precision=bfloat16

On a GPU each operation that is no view is a kernel or more, and takes the host some microseconds to
launch. `cuda_graph=true` launches those of a step's network at once, and those of a minibatch's
loss and gradients; `compile=true` fewer, larger ones, which are not counted here. The operations
that only a CPU leaves out are counted, too.

Options are those of a run, which `python -m mtxl_rl.train --help` tells; env= must be among them.
"""

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtxl_rl.config import compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.torso import cache, memory_transformer
from mtxl_rl.tracking.cli import command_line
from mtxl_rl.train import Run

SMALL = ["num_envs=8", "stagger_steps=0", "device=cpu", "ppo.ratio_bound=1e9"]
"""How many rows there are changes nothing; what the stand-in for a graph finds is old."""
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "_unsafe_view"}


class Count(TorchDispatchMode):
    """Counts the operations inside that make or change a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # noqa: ANN204
        self,
        func,  # noqa: ANN001
        types,  # noqa: ANN001
        args=(),  # noqa: ANN001
        kwargs=None,  # noqa: ANN001
    ):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


def run_of(options: list[str]) -> Run:
    """A run at the start of its first episodes."""
    config = compose_config([*SMALL, *options])
    if config.torso.kind != "transformer" or config.compile or config.cuda_graph:
        raise ValueError(
            "what is counted is a torso.kind=transformer, with and without a stand-in for "
            "cuda_graph=true; leave out other kinds, compile= and cuda_graph="
        )
    env = EnvGroups(config.env, num_envs=config.num_envs, num_groups=1, seed=0)
    run = Run(config, env)
    run.collector.reset(seed=0)
    return run


def acting(run: Run) -> Counter[str]:
    """Operations of a rollout; not the first, in which what is recorded is run once."""
    with ExitStack() as stack:
        for module in (cache, memory_transformer):
            stack.enter_context(patch.object(module, "any_may_be_set", lambda rows: True))  # noqa: ARG005
        run.collector.collect()
        with Count() as count:
            run.collector.collect()
    return count.by_name


def learning(run: Run) -> tuple[Counter[str], int]:
    """Operations of learning from a rollout, not the first, and its minibatches."""
    run.iterate()
    rollout, _ = run.collector.collect()
    with Count() as count:
        found = run.agent.update(rollout, progress=0.0)
    return count.by_name, round(found["ppo/epochs"] * run.config.ppo.num_minibatches)


def per(count: Counter[str], number: int) -> str:
    """The sum, and what there is most of, per one of `number`."""
    most = ", ".join(f"{name} {times / number:.0f}" for name, times in count.most_common(6))
    return f"{count.total() / number:,.0f} | {most}"


def main(options: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    plain, replayed = run_of(options), run_of(options)
    # What is replayed is launched at once: a stand-in that does nothing.
    replayed.policy.replay_acting(capture=lambda call: lambda: None)  # noqa: ARG005
    replayed.agent.replay_learning(capture=lambda call: lambda: None)  # noqa: ARG005
    steps = plain.config.ppo.rollout_length
    print(f"{' '.join(options)}\n\n| | operations | most of them |\n|---|---|---|")
    print(f"| a step of acting | {per(acting(plain), steps)} |")
    beside = "the same with cuda_graph=true, beside the graph"
    print(f"| {beside} | {per(acting(replayed), steps)} |")
    print(f"| a minibatch | {per(*learning(plain))} |")
    print(f"| {beside} | {per(*learning(replayed))} |")


if __name__ == "__main__":
    command_line(None, usage=lambda: __doc__, run=main)
