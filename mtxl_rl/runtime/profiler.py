"""Measures a training iteration's parts, and its share of the machine's peak arithmetic.

The parts are `torch.profiler.record_function` scopes in the code; operations are counted by
`torch.utils.flop_counter`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mtxl_rl.agents.collector import Collector
from mtxl_rl.agents.policy import PRECISIONS
from mtxl_rl.agents.ppo import PPO, LossWeights
from mtxl_rl.runtime.compile import eager

SCOPES = (
    "acting", "act", "environment", "learning", "advantages", "encoder", "torso", "heads",
    "backward", "optimizer",
)  # fmt: skip
"""The scopes of the table: `acting` and `learning` contain the others."""


class IterationProfiler:
    """Profiles one iteration and reports it as text."""

    def __init__(self, collector: Collector, agent: PPO) -> None:
        self._collector, self._agent = collector, agent
        self.report = ""

    @contextmanager
    def profile(self, *, num_steps: int) -> Iterator[None]:
        """Profile what runs inside; `num_steps` environment steps. Sets `report`."""
        activities = [ProfilerActivity.CPU]
        if self._agent.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        begin = time.perf_counter()
        with profile(activities=activities) as profiler:
            yield
        seconds = time.perf_counter() - begin
        averages = {event.key: event for event in profiler.key_averages()}
        lines = [f"{'part':<14}{'calls':>8}{'seconds':>10}{'share':>8}{'us/step':>10}"]
        for name in SCOPES:
            if name not in averages:
                continue
            spent = averages[name].cpu_time_total / 1e6
            lines.append(
                f"{name:<14}{averages[name].count:>8}{spent:>10.3f}{spent / seconds:>8.1%}"
                f"{1e6 * spent / num_steps:>10.2f}"
            )
        lines.append(f"{'iteration':<14}{1:>8}{seconds:>10.3f}{1:>8.1%}")
        self.report = "\n".join([*lines, self._arithmetic()])

    def _arithmetic(self) -> str:
        """Operations of acting and learning per step, and the rate of a matrix product here."""
        acting, learning = count_operations(self._collector, self._agent)
        peak = measure_peak(self._agent.device, PRECISIONS[self._agent.policy.config.precision])
        return (
            f"acting {acting / 1e6:.3g} MFLOP a step, "
            f"learning {learning / 1e6:.3g} MFLOP a sample; "
            f"a matrix product runs at {peak / 1e9:.3g} GFLOP/s here"
        )


def count_operations(collector: Collector, agent: PPO) -> tuple[float, float]:
    """Floating-point operations of acting per step, and of learning per sample and epoch."""
    rollout, policy = collector.rollout, agent.policy
    spans = rollout.span_of_every_env(0)
    inputs = collector.actor.inputs()
    with eager(policy):
        cache = policy.prefill(collector.memory)
        with FlopCounterMode(display=False) as counter:
            policy.act(inputs, cache)
        acting = counter.get_total_flops() / rollout.shape.num_envs
        with FlopCounterMode(display=False) as counter:
            loss, _ = agent.loss(spans, LossWeights())
            torch.autograd.grad(loss, agent.parameters, materialize_grads=True)
        learning = counter.get_total_flops() / spans.value.numel()
    return acting, learning


def measure_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(9):
        begin = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
