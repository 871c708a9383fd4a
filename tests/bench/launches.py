"""What the host launches: operations per step of acting and per minibatch, counted on the CPU.

python tests/bench/launches.py env=MemoryMaze model=base policy.precision=bfloat16

On a GPU each operation that is no view is a kernel or more, and takes the host some microseconds to
launch. `cuda_graph=true` launches those of a step's network at once, `compile=true` fewer, larger
ones, which are not counted here. The operations that only a CPU leaves out are counted, too.
"""

import sys
from collections import Counter
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtxl_rl.config import compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.torso import memory_transformer
from mtxl_rl.train import Run

SMALL = ["num_envs=8", "num_threads=1", "stagger_steps=0", "device=cpu"]
"""How many rows there are changes nothing."""
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


def counted(options: list[str], *, replays: bool) -> tuple[Counter[str], Counter[str], int, int]:
    """Operations of a rollout and of learning from it; the numbers of steps and of minibatches."""
    config = compose_config([*SMALL, *options])
    env = EnvGroups(config.env, num_envs=config.num_envs, num_groups=1, seed=0)
    run = Run(config, env)
    if replays:  # What is replayed was launched at once: a stand-in that does nothing.
        run.policy.replay_acting(capture=lambda call: lambda: None)  # noqa: ARG005
    run.collector.reset(seed=0)
    with patch.object(memory_transformer, "_may_be_any", lambda rows: True):  # noqa: ARG005
        rollout, _ = run.collector.collect()
        with Count() as acting:
            run.collector.collect()
        with Count() as learning:
            found = run.agent.update(rollout, progress=0.0)
    env.close()
    minibatches = round(found["ppo/epochs"] * config.ppo.num_minibatches)
    return acting.by_name, learning.by_name, config.ppo.rollout_length, minibatches


def per(count: Counter[str], number: int) -> str:
    """The sum, and what there is most of, per one of `number`."""
    most = ", ".join(f"{name} {times / number:.0f}" for name, times in count.most_common(6))
    return f"{count.total() / number:,.0f} | {most}"


def main(options: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    acting, learning, steps, minibatches = counted(options, replays=False)
    replayed = counted(options, replays=True)[0]
    print(f"{' '.join(options)}\n\n| | operations | most of them |\n|---|---|---|")
    print(f"| a step of acting | {per(acting, steps)} |")
    print(f"| the same with cuda_graph=true, beside the graph | {per(replayed, steps)} |")
    print(f"| a minibatch | {per(learning, minibatches)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
