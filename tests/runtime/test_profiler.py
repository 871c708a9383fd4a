"""Where the time goes, and what a step costs on paper."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtxl_rl.agents.ppo import _inputs, _memory
from mtxl_rl.config import compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.runtime.flops import acting_cost, learning_cost
from mtxl_rl.runtime.profiler import Profile, measure_peak
from mtxl_rl.train import Run

SIZES = [
    "env=TMaze", "torso.width=64", "torso.num_layers=2", "torso.num_heads=2", "num_envs=8",
    "torso.window_length=16", "torso.segment_length=16", "ppo.rollout_length=64",
    "ppo.bptt_segments=4", "ppo.num_minibatches=2", "device=cpu", "total_steps=1024",
]  # fmt: skip


class Parts:
    """Parts that take whole seconds of a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0

    def outer(self) -> str:
        """Three seconds and what it calls."""
        self.now += 1
        self.inner()
        self.alone()
        self.now += 2
        return "done"

    def inner(self) -> None:
        """Four seconds."""
        self.now += 4

    def alone(self) -> None:
        """Eight seconds."""
        self.now += 8


def test_a_part_counts_without_those_inside_it() -> None:
    parts = Parts()
    profile = Profile(torch.device("cpu"), clock=lambda: parts.now)
    profile.watch(parts, "outer", "learner")
    profile.watch(parts, "inner", "torso")
    profile.watch(parts, "alone", "environment", alone=True)
    parts.now += 32
    profile.resume()
    parts.now += 16
    assert parts.outer() == "done"
    expected = {"environment": 8, "learner": 3, "learner: torso": 4, "other": 16}
    assert profile.seconds() == expected
    assert profile.table(num_steps=62).splitlines()[-1].split() == [
        "total", "31.00", "100.0%", "500000.00",
    ]  # fmt: skip


def test_a_failure_inside_a_part_leaves_it() -> None:
    parts = Parts()
    profile = Profile(torch.device("cpu"), clock=lambda: parts.now)
    parts.inner = lambda: 1 / 0  # type: ignore[assignment,return-value]
    profile.watch(parts, "inner", "torso")
    with pytest.raises(ZeroDivisionError):
        parts.inner()
    parts.now += 1
    assert profile.seconds() == {"torso": 0, "other": 1}


@pytest.mark.parametrize("torso", ["mtxl", "gtrxl", "none", "gru", "lstm"])
def test_what_is_counted_on_paper_is_what_torch_counts(torso: str) -> None:
    config = compose_config([*SIZES, f"torso={torso}"])
    env = EnvGroups(config.env, num_envs=8, num_groups=config.env_groups, seed=0)
    run = Run(config, env)
    run.collector.reset(seed=None)
    rollout, _ = run.collector.collect()
    policy, shape = run.policy, rollout.shape
    unused = torch.zeros_like(rollout.value)
    spans = rollout.spans(torch.arange(4), unused, unused)
    paper = learning_cost(policy, shape.observation, span_length=64, num_spans=4)
    if torso not in ("gru", "lstm"):  # torch does not count what is inside those kernels
        with FlopCounterMode(display=False) as counter:
            outputs, _ = policy(_inputs(spans), _memory(spans))
            (outputs.value.sum() + outputs.action_parameters.sum()).backward()
        assert counter.get_total_flops() / (4 * 64) == pytest.approx(paper.flops, rel=0.06)
    memory = policy.begin(run.collector.memory)
    inputs = run.collector.actors[0].inputs()
    paper = acting_cost(policy, shape.observation, num_envs=8)
    if torso not in ("gru", "lstm"):
        with FlopCounterMode(display=False) as counter:
            policy.act(inputs, memory)
        assert counter.get_total_flops() / 8 == pytest.approx(paper.flops, rel=0.06)
    env.close()


def test_the_machine_has_a_peak() -> None:
    peak = measure_peak(torch.device("cpu"))
    assert peak.flops > 0
    assert peak.bytes > 0
