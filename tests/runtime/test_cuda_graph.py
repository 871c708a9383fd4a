"""Acting and learning replayed as CUDA graphs, on a CPU: a recording does what a graph would do.

`record` keeps each operation with the tensors that it read and wrote, as a graph keeps kernels with
their addresses, and asks the device nothing. What Python would look up anew at each step, as
another tensor under the same name, it does not see; neither would the graph.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtxl_rl.agents.policy import Policy
from mtxl_rl.config import TrainConfig, compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.runtime.cuda_graph import Replayed
from mtxl_rl.torso import cache, memory_transformer
from mtxl_rl.train import Run, run

QUESTIONS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
"""Operations for whose answer the host waits, which no graph may hold."""


def tensors(tree: Any) -> list[Tensor]:  # noqa: ANN401
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recording(TorchDispatchMode):
    """What is called inside, to be done again; what it changed is put back at the end."""

    def __enter__(self) -> "Recording":
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.changed: list[tuple[Tensor, Tensor]] = []
        super().__enter__()
        return self

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # noqa: ANN204
        self,
        func,  # noqa: ANN001
        types,  # noqa: ANN001
        args=(),  # noqa: ANN001
        kwargs=None,  # noqa: ANN001
    ):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in QUESTIONS, f"{name} asks the device"
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.changed += [(one, one.clone()) for one in tensors(given)]
        self.changed += [(one, one.clone()) for one in tensors(kwargs.get("out"))]
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for changed, before in reversed(self.changed):
            changed.copy_(before)

    def replay(self) -> None:
        """Do it all again; gradients, too, are but operations that were done."""
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, found in self.calls:
                places = {one.untyped_storage().data_ptr() for one in tensors((args, kwargs))}
                again = func(*args, **kwargs)
                for kept, new in zip(tensors(found), tensors(again), strict=True):
                    # Views, and what is changed in place, are where they were.
                    if kept.untyped_storage().data_ptr() not in places:
                        kept.copy_(new)


def record(call: Callable[[], None]) -> Callable[[], None]:
    """What `mtxl_rl.runtime.cuda_graph.capture` does on a GPU."""
    with Recording() as recording:
        call()
    return recording.replay


def trained(*options: str, replays: bool, num_iterations: int = 3) -> list[dict[str, float]]:
    """The metrics of some iterations in which episodes of 7 steps start and end."""
    config = compose_config([
        "env=TMaze", "env.corridor_length=6", "model=tiny", "num_envs=4", "device=cpu",
        "torso.window_length=8", "torso.segment_length=4", "ppo.bptt_segments=2",
        "ppo.rollout_length=16", "ppo.num_minibatches=2", "ppo.learning_rate=0.01", *options,
    ])  # fmt: skip
    env = EnvGroups(config.env, num_envs=4, num_groups=config.env_groups, seed=0)
    this = Run(config, env)
    if replays:
        this.policy.replay_acting(capture=record)
        this.agent.replay_learning(capture=record)
    this.collector.reset(seed=None)
    # Shared slots then ask nothing, and round as in the record.
    with ExitStack() as stack:
        for module in (cache, memory_transformer):
            stack.enter_context(patch.object(module, "is_tracing_or_capturing", lambda: True))
        found = [this.iterate() for _ in range(num_iterations)]
    env.close()
    return [
        {key: value for key, value in metrics.items() if not key.startswith(("time/", "speed/"))}
        for metrics in found
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["env_groups=2"],
        ["torso.position=rotary", "torso.decay=free"],
        ["torso.long_term=slots"],
        ["torso.long_term=slots", "torso.slots.is_shared=true"],
        ["torso.long_term=tokens"],
        ["torso.long_term=none"],
    ],
    ids=" ".join,
)
def test_a_run_whose_steps_are_replayed_is_the_run(options: list[str]) -> None:
    assert trained(*options, replays=True) == trained(*options, replays=False)


def test_casts_of_weights_are_part_of_what_is_replayed() -> None:
    # Recorded, torch rounds a product of bfloat16 elsewhere: not to the digit as the run without.
    found = trained("policy.precision=bfloat16", replays=True)
    assert max(metrics["ppo/ratio_deviation"] for metrics in found) < 0.01


def test_a_recording_that_keeps_casts_of_weights_is_told_by_the_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What `keeps_casts=False` is for; and the runs above would show what a graph does not see.
    autocast = Policy.autocast
    monkeypatch.setattr(Policy, "autocast", lambda policy, **_: autocast(policy))
    with pytest.raises(RuntimeError, match="acting and learning disagree"):
        trained("policy.precision=bfloat16", "ppo.ratio_bound=0.05", replays=True)


def test_what_is_found_is_the_callers_own() -> None:
    doubled = Replayed(lambda given: (given[0] * 2, None), capture=record)
    results = [doubled((torch.tensor([float(n)]), None))[0] for n in range(4)]
    assert torch.cat(results).tolist() == [0, 2, 4, 6]


def test_what_was_left_out_at_first_cannot_come_later() -> None:
    same = Replayed(lambda given: given, capture=record)
    same((torch.zeros(1), None))
    with pytest.raises(AssertionError, match="given at first"):
        same((torch.zeros(1), torch.zeros(1)))


def test_graphs_are_for_transformers_on_a_gpu() -> None:
    config = compose_config(["env=TMaze", "device=cpu", "cuda_graph=true"])
    with pytest.raises(ValueError, match=r"cuda_graph=true needs a CUDA device .* device=cpu"):
        run(config)
    with pytest.raises(ValueError, match=r"cuda_graph=true has no effect with torso\.kind=gru"):
        compose_config(["env=TMaze", "torso=gru", "cuda_graph=true"])


def test_threads_that_share_a_minibatch_are_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainConfig, "torch_device", lambda config: torch.device("cuda"))  # noqa: ARG005
    with pytest.raises(ValueError, match=r"num_threads=2 is for a CPU .* leave it out"):
        run(compose_config(["env=TMaze", "device=cuda", "num_threads=2"]))
