"""Where a run's time goes: the methods of a run's parts, timed; and what the machine can do.

Nothing is timed until `Profile.watch` replaces a method of an object by a timed one, so a run that
is not profiled pays nothing.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Any, NamedTuple

import torch

from mtxl_rl.agents.collector import Collector
from mtxl_rl.agents.policy import PRECISIONS
from mtxl_rl.agents.ppo import PPO
from mtxl_rl.runtime.compile import becomes_a_graph
from mtxl_rl.runtime.flops import acting_cost, learning_cost


class Profile:
    """Seconds by part of a run, in the thread that made it; parts nest, and each counts alone.

    A part that is watched inside another one is listed under the outermost: the encoder has a row
    for acting and one for learning. On a GPU every change of part waits for the device, so that
    the work is counted where it was asked for; the run is slower for it.
    """

    def __init__(
        self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device = device
        self._clock = clock
        self._thread = get_ident()
        self._stack: list[str] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._since = clock()

    def watch(self, owner: Any, method: str, part: str, *, alone: bool = False) -> None:  # noqa: ANN401
        """Time `owner.method` as `part`; `alone`: under its own name wherever it is called."""
        call = getattr(owner, method)

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            # Compiler and CUDA graph see through to the method; what they make of it is watched as
            # a whole.
            if becomes_a_graph() or get_ident() != self._thread:
                return call(*args, **kwargs)
            is_inner = self._stack and not alone
            self._change(push=f"{self._stack[0]}: {part}" if is_inner else part)
            try:
                return call(*args, **kwargs)
            finally:
                self._change(push=None)

        setattr(owner, method, timed)

    def resume(self) -> None:
        """Leave out the time since the last change of part: the run stood still."""
        self._since = self._clock()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part without those watched inside it; "other" is what is left."""
        self._count()
        found = dict(sorted(self._seconds.items()))
        found["other"] = found.pop("", 0.0)
        return found

    def table(self, *, num_steps: int) -> str:
        """A line per part: seconds, share, and microseconds per environment step."""
        seconds = self.seconds()
        total = sum(seconds.values())
        rows = [*seconds.items(), ("total", total)]
        lines = [f"{'part':<22}{'seconds':>10}{'share':>8}{'us/step':>11}"]
        lines += [
            f"{part:<22}{spent:>10.2f}{spent / total:>8.1%}{1e6 * spent / max(num_steps, 1):>11.2f}"
            for part, spent in rows
        ]
        return "\n".join(lines)

    def _change(self, *, push: str | None) -> None:
        """Stop the clock of the part under way, and start that of the next."""
        self._count()
        if push is None:
            self._stack.pop()
        else:
            self._stack.append(push)

    def _count(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = self._clock()
        self._seconds[self._stack[-1] if self._stack else ""] += now - self._since
        self._since = now


class RunProfile:
    """The profile of a training run: its parts, watched, and what each phase costs on paper."""

    def __init__(self, collector: Collector, agent: PPO) -> None:
        self.collector, self.agent = collector, agent
        self.num_steps, self.num_samples = 0, 0.0
        policy, shape = agent.policy, collector.rollout.shape
        num_spans = shape.num_envs * shape.num_spans // agent.config.num_minibatches
        leaves = shape.observation
        self.costs = {
            "acting": acting_cost(policy, leaves, num_envs=shape.num_envs),
            "learner": learning_cost(
                policy, leaves, span_length=shape.span_length, num_spans=num_spans
            ),
        }
        self.profile = profile = Profile(agent.device)
        profile.watch(collector, "_wait", "environment", alone=True)
        for actor in collector.actors:
            profile.watch(actor, "_upload", "host-device copies", alone=True)
        profile.watch(policy.action_head, "to_env", "host-device copies", alone=True)
        profile.watch(collector, "collect", "acting")
        profile.watch(agent, "update", "learner")
        profile.watch(agent, "_advantage", "GAE")
        profile.watch(policy.encoder, "forward", "encoder")
        profile.watch(policy.torso, "forward", "torso")
        profile.watch(policy.torso, "act", "torso")
        profile.watch(policy, "_say", "heads")
        if policy.acts_at_once:
            profile.watch(policy, "_whole_step", "whole step")
        if agent.learns_at_once:
            profile.watch(agent, "_learn_part", "whole minibatch")
        profile.watch(agent, "_gradients", "backward")
        profile.watch(agent.optimizer, "step", "optimiser")

    def count(self, *, num_steps: int, num_samples: float) -> None:
        """Note the environment steps and the learner's samples of an iteration."""
        self.num_steps += num_steps
        self.num_samples += num_samples

    def report(self) -> str:
        """The table, and a line for each phase: counted on paper, per second, of the peak."""
        seconds = self.profile.seconds()
        lines = [self.profile.table(num_steps=self.num_steps), ""]
        peak = measure_peak(self.agent.device, PRECISIONS[self.agent.policy.config.precision])
        counts = {"acting": self.num_steps, "learner": self.num_samples}
        for phase, cost in self.costs.items():
            spent = sum(part for name, part in seconds.items() if name.startswith(phase))
            flops, traffic = (each * counts[phase] / spent for each in cost)
            lines.append(
                f"{phase}: {cost.flops / 1e6:.3g} MFLOP and {cost.bytes / 1e3:.3g} kB each, "
                f"{flops / 1e9:.3g} GFLOP/s ({flops / peak.flops:.1%} of a matrix product's "
                f"{peak.flops / 1e9:.3g}), {traffic / 1e9:.3g} GB/s ({traffic / peak.bytes:.1%} of "
                f"a copy's {peak.bytes / 1e9:.3g})"
            )
        return "\n".join(lines)


class Peak(NamedTuple):
    """The best that the machine did just now."""

    flops: float
    """Floating-point operations per second of a matrix product."""
    bytes: float
    """Bytes per second read and written by a copy."""


def measure_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> Peak:
    """A large matrix product and a large copy, the best of several."""
    is_gpu = device.type == "cuda"
    size, count = (8192, 2**28) if is_gpu else (1024, 2**24)
    a = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    return Peak(
        2 * size**3 / _best_seconds(lambda: a @ a, is_gpu=is_gpu),
        2 * source.nbytes / _best_seconds(lambda: target.copy_(source), is_gpu=is_gpu),
    )


def _best_seconds(work: Callable[[], object], *, is_gpu: bool, repeats: int = 8) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if is_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best
