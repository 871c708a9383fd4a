"""Proximal policy optimisation over spans of segments (Schulman et al. 2017, arXiv 1707.06347)."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mtxl_rl.agents.policy import PRECISIONS, Policy, PolicyInputs
from mtxl_rl.agents.returns import explained_variance, gae
from mtxl_rl.agents.rollout import Rollout, Spans
from mtxl_rl.runtime.compile import check_gradients
from mtxl_rl.runtime.cuda_graph import Capture, Replayed, capture
from mtxl_rl.torso import MemoryState, window_mask
from mtxl_rl.torso.torso_config import check_at_least

REFRESH = ("never", "epoch")


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """PPO's settings."""

    rollout_length: int = 128
    """Steps of each environment per iteration, T; a multiple of bptt_segments x segment_length."""
    bptt_segments: int = 4
    """Segments of a span: gradients flow through the long-term memory over this many."""
    num_epochs: int = 3
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Parts of each pass; must divide num_envs x spans per rollout."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 0.0
    """Adam's step size at total_steps; linear in between."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start."""
    final_entropy_coef: float = 0.001
    """Weight of the entropy bonus at total_steps; linear in between."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimates."""
    clip_coef: float = 0.2
    """The ratio is clipped to 1 +- this."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    popart: bool = True
    """Scale values and their loss by the spread of the returns, which `ValueHead` follows."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float = 0.02
    """Leave a rollout once a minibatch's approx_kl exceeds 1.5 times this; 0: never."""
    memory_refresh: str = "never"
    """Recompute the stored memories with the new weights: never, or before every later epoch."""
    ratio_bound: float = 0.0
    """Largest |ratio - 1| allowed before an iteration's first update, unless rounding explains more
    in this very minibatch; 0: 1e-4, 0.25 in bfloat16."""

    def __post_init__(self) -> None:
        """Check ranges."""
        counts = ("rollout_length", "bptt_segments", "num_epochs", "num_minibatches")
        check_at_least(self, 1, *counts, prefix="ppo.")
        weights = ("final_learning_rate", "value_coef", "entropy_coef", "final_entropy_coef")
        check_at_least(self, 0, *weights, "target_kl", "ratio_bound", prefix="ppo.")
        for field in (*weights, "learning_rate"):
            if not math.isfinite(getattr(self, field)):
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be a finite number")
        for field in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be in 0 .. 1")
        for field in ("learning_rate", "clip_coef", "max_grad_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be above 0")
        if self.memory_refresh not in REFRESH:
            raise ValueError(
                f"ppo.memory_refresh={self.memory_refresh} is unknown; choose one of "
                f"{', '.join(REFRESH)}"
            )


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was NaN or infinite; the trainer adds where the last checkpoint is."""


def ppo_loss(
    log_prob: Float[Tensor, "I L"],
    entropy: Float[Tensor, "I L"],
    value: Float[Tensor, "I L"],
    spans: Spans,
    *,
    num_valid: Tensor | None = None,
    value_deviation: Tensor | float = 1.0,
    clip_coef: float,
    value_coef: float,
    entropy_coef: Tensor | float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The clipped surrogate, value and entropy terms, averaged over the valid steps.

    L = -min(rho A, clip(rho, 1 - c, 1 + c) A) + value_coef (V - target)^2 / 2 - entropy_coef H,
    rho = exp(log_prob - stored log_prob); eqs. 7 and 9 of the paper. V and the target are measured
    in units of `value_deviation`. Of a part of a minibatch, `num_valid` is the minibatch's count of
    valid steps: then the parts' losses and means add up to the minibatch's.
    """
    weight = spans.valid / (spans.valid.sum() if num_valid is None else num_valid).clamp(min=1)
    # Not weighed by zero alone: a step that is not valid may overflow, and zero times inf is NaN.
    log_ratio = (log_prob - spans.log_prob).masked_fill(~spans.valid, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    surrogate = torch.minimum(ratio * spans.advantage, clipped * spans.advantage)
    policy_loss = -(weight * surrogate).sum()
    value_error = (value - spans.value_target) / value_deviation
    value_loss = 0.5 * (weight * value_error.square()).sum()
    mean_entropy = (weight * entropy).sum()
    loss = policy_loss + value_coef * value_loss - entropy_coef * mean_entropy
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_coef).to(weight.dtype)
        metrics = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "ppo/entropy": mean_entropy,
            "ppo/approx_kl": (weight * (ratio - 1 - log_ratio)).sum(),
            "ppo/clip_fraction": (weight * outside).sum(),
            "ppo/ratio_deviation": (ratio - 1).abs().max(),
        }
    return loss, {key: metric.detach() for key, metric in metrics.items()}


class _Part(NamedTuple):
    """What is learned at once: a minibatch, or a thread's part of one."""

    spans: Spans
    num_valid: Tensor
    """Valid steps of the whole minibatch."""
    entropy_coef: Tensor


class _Learned(NamedTuple):
    """What one part of a minibatch gives."""

    loss: Tensor
    metrics: dict[str, Tensor]
    gradients: tuple[Tensor, ...]


_Learn = Callable[[_Part], _Learned]


class PPO:
    """The learner: a policy, its optimiser, and one `update` per rollout.

    A minibatch is whole spans. From the memory stored at a span's start, its segments are re-run
    with gradients flowing through the long-term memory writes; only that start is cut off.

    On a CPU, `num_threads` threads take a part of each minibatch's spans each, every one with
    torch's operations on one core: where cores are shared, threads inside an operation wait for
    one another at its end, these only at the minibatch's. Gradients are added in the parts' order.
    """

    def __init__(self, policy: Policy, config: PPOConfig, *, num_threads: int = 1) -> None:
        self.policy = policy
        self.config = config
        self.parameters = list(policy.parameters())
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None
        self._has_learned = False
        self._learn_part: _Learn = self._learn
        # fused: one kernel for all parameters, on the CPU as on a GPU.
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.generator = torch.Generator().manual_seed(torch.initial_seed())
        bfloat16 = policy.config.precision == "bfloat16"
        self.ratio_bound = config.ratio_bound or (0.25 if bfloat16 else 1e-4)
        self.device = self.parameters[0].device

    def replay_learning(self, *, capture: Capture = capture) -> None:
        """Make a minibatch's loss and gradients a CUDA graph; see `Replayed`.

        What asks the host stays beside it: whether the policy has moved too far, and the
        optimiser's step.
        """
        assert self.num_threads == 1, self.num_threads
        # Gradients and metrics are added to others' or to new ones before the next minibatch.
        self._learn_part = Replayed(self._learn, capture=capture, lends=True)

    @property
    def learns_at_once(self) -> bool:
        """Whether a minibatch's loss and gradients are one call, by `replay_learning`."""
        return isinstance(self._learn_part, Replayed)

    def update(self, rollout: Rollout, *, progress: float) -> dict[str, float]:
        """Learn from one rollout; `progress` in 0 .. 1 moves the schedules.

        Raises:
            NonFiniteLossError: a loss or gradient was not finite.
            RuntimeError: the learner's ratio at the start was out of its bound.
        """
        config = self.config
        rate = _linear(config.learning_rate, config.final_learning_rate, progress)
        entropy_coef = _linear(config.entropy_coef, config.final_entropy_coef, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # As a tensor, which a graph reads anew.
        entropy_weight = torch.tensor(entropy_coef, device=self.device)
        advantage = self._advantage(rollout)
        if config.popart:
            self.policy.value_head.adapt((rollout.value + advantage)[rollout.valid])
        metrics: dict[str, list[Tensor]] = {}
        num_updates = 0
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.memory_refresh == "epoch":
                metrics.setdefault("memory/drift", []).append(self.refresh(rollout))
            made = self._epoch(rollout, advantage, entropy_weight, metrics)
            num_updates += made
            if made < config.num_minibatches:
                break
        return self._report(metrics, rollout, advantage) | {
            "ppo/learning_rate": rate,
            "ppo/entropy_coef": entropy_coef,
            "ppo/epochs": num_updates / config.num_minibatches,
        }

    @torch.no_grad()
    def refresh(self, rollout: Rollout) -> Float[Tensor, ""]:
        """Recompute the memories at the spans' starts with the present weights.

        The rollout's first ones stay: what led to them is no longer stored.

        Returns:
            The drift: the norm of the change of the spans' start memories over their norm.
        """
        shape = rollout.shape
        everyone = torch.arange(shape.num_envs, device=self.device) * shape.num_spans
        stored, timeline = rollout.long_term.clone(), rollout.timeline.clone()
        unused = torch.zeros_like(rollout.value)
        state = _memory(rollout.spans(everyone, unused, unused))
        for span in range(1, shape.num_spans):
            before = rollout.spans(everyone + span - 1, unused, unused)
            _, state = self.policy(_inputs(before), state)
            valid = window_mask(state.window_length, shape.window_length)
            rollout.refresh(span, long_term=state.long_term, window=state.window, valid=valid)
        change = (rollout.long_term - stored).norm() + (rollout.timeline - timeline).norm()
        return change / (stored.norm() + timeline.norm() + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())

    def _advantage(self, rollout: Rollout) -> Tensor:
        return gae(
            rollout.reward[:, 1:],
            rollout.terminated,
            rollout.valid,
            rollout.value,
            rollout.bootstrap_value,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )

    def _epoch(
        self,
        rollout: Rollout,
        advantage: Tensor,
        entropy_coef: Tensor,
        metrics: dict[str, list[Tensor]],
    ) -> int:
        """One pass over the rollout, up to where the policy has moved too far; updates made."""
        batches = rollout.minibatches(
            advantage, num_minibatches=self.config.num_minibatches, generator=self.generator
        )
        for num_updates, spans in enumerate(batches):
            # The first minibatch always counts: it meets the weights that acted.
            found, has_moved = self._step(spans, entropy_coef, is_first_update=not metrics)
            for key, metric in found.items():
                metrics.setdefault(key, []).append(metric)
            if not has_moved:
                return num_updates
        return self.config.num_minibatches

    def _step(
        self, spans: Spans, entropy_coef: Tensor, *, is_first_update: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """One minibatch, and whether it moved the weights; gradients that are not finite do not.

        Near a deterministic policy a clipped ratio bounds nothing: every minibatch may push other
        steps' ratios out. `target_kl` does bound it.
        """
        num_valid = spans.valid.sum().clamp(min=1)
        parts = [_Part(part, num_valid, entropy_coef) for part in spans.split(self.num_threads)]
        # One after another at first: what is compiled at first use is compiled once.
        side_by_side = self._pool.map if self._pool is not None and self._has_learned else map
        others = side_by_side(self._learn_part, parts[1:])
        learned = [self._learn_part(parts[0]), *others]
        if not self._has_learned:
            self._check_compiler(parts, learned)
        self._has_learned = True
        metrics = _combined([part.metrics for part in learned])
        if is_first_update:
            self._check_ratio(spans, float(metrics["ppo/ratio_deviation"]))
        limit = 0.0 if is_first_update else 1.5 * self.config.target_kl
        if limit and float(metrics["ppo/approx_kl"]) > limit:
            return metrics, False
        loss = torch.stack([part.loss for part in learned]).sum()
        for parameter, gradient in zip(self.parameters, _summed(learned), strict=True):
            parameter.grad = _laid_out_as(parameter, gradient)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        # As torch.amp.GradScaler tells a fused optimiser to leave out a step, asking no question.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return metrics | {"loss/total": loss, "ppo/grad_norm": norm}, True

    def _learn(self, part: _Part) -> _Learned:
        """Loss, metrics and gradients of a part of a minibatch."""
        spans, num_valid, entropy_coef = part
        outputs, _ = self.policy(_inputs(spans), _memory(spans))
        head = self.policy.action_head
        loss, metrics = ppo_loss(
            head.log_prob(outputs.action_parameters, spans.action),
            head.entropy(outputs.action_parameters),
            outputs.value,
            spans,
            num_valid=num_valid,
            value_deviation=self.policy.value_head.deviation if self.config.popart else 1.0,
            clip_coef=self.config.clip_coef,
            value_coef=self.config.value_coef,
            entropy_coef=entropy_coef,
        )
        if outputs.reconstruction_loss is not None:
            reconstruction = (outputs.reconstruction_loss * spans.valid).sum() / num_valid
            loss = loss + self.policy.config.reconstruction_coef * reconstruction
            metrics["loss/reconstruction"] = reconstruction.detach()
        return _Learned(loss.detach(), metrics, self._gradients(loss))

    def _check_compiler(self, parts: list[_Part], learned: list[_Learned]) -> None:
        """Learn a minibatch again by the plain layers; see `check_gradients`.

        Raises:
            RuntimeError: they differ by more than rounding.
        """
        torso = self.policy.torso
        with self.policy.uncompiled_learning() as is_compiled:
            if not is_compiled:
                return
            plain = [self._learn(part) for part in parts]
        in_torso = set(torso.parameters())
        check_gradients(
            _summed(learned),
            _summed(plain),
            is_inside=[parameter in in_torso for parameter in self.parameters],
            # Rounding is 2e-6, 1e-3 where it turns a ReLU, and 0.09 in bfloat16; who reads a wrong
            # buffer is wrong by about 1.
            bound=0.5 if self.policy.config.precision == "bfloat16" else 0.05,
        )

    def _check_ratio(self, spans: Spans, deviation: float) -> None:
        """Refuse to learn where acting computed something else, up to rounding.

        A step may be ill-conditioned, as where attention or a gate is about to turn: there float32
        is off by 1e-4, now and then, of an agent whose median step is off by 1e-8.

        Raises:
            RuntimeError: `deviation`, the largest |ratio - 1| of weights that have not moved since
                they acted, is above its bound and above what rounding makes of these spans.
        """
        if not deviation > self.ratio_bound:  # NaN stops the run elsewhere.
            return
        rounding = self._rounding(spans)
        if deviation > 10 * rounding:
            raise RuntimeError(
                f"ppo/ratio_deviation={deviation:.2e} before the first update exceeds "
                f"ppo.ratio_bound={self.ratio_bound:.0e}, and rounding explains {rounding:.0e} of "
                "it: acting and learning disagree, which is a bug of the policy; please report it, "
                "or raise ppo.ratio_bound to go on"
            )

    @torch.no_grad()
    def _rounding(self, spans: Spans) -> float:
        """The largest |ratio - 1| between float64 and this policy, its weights rounded otherwise.

        One that rounds as it happens to may be near by chance; so it is the largest of several.
        """

        def log_prob(policy: Policy, state: MemoryState) -> Tensor:
            outputs, _ = policy(_inputs(spans), state)
            return policy.action_head.log_prob(outputs.action_parameters, spans.action)

        state = _memory(spans)
        wide = state.apply(lambda field: field.double() if field.is_floating_point() else field)
        exact = log_prob(self.policy.twin(torch.float64), wide)
        half = torch.finfo(PRECISIONS[self.policy.config.precision]).eps / 2
        generator = torch.Generator(self.device).manual_seed(0)
        found = []
        for _ in range(3):
            twin = self.policy.twin(torch.float32)
            for weight in twin.parameters():
                noise = torch.rand(weight.shape, generator=generator, device=self.device)
                weight.mul_(1 + half * (2 * noise - 1))
            ratio = (log_prob(twin, state) - exact).exp()
            found.append(((ratio - 1).abs() * spans.valid).max())
        return float(torch.stack(found).max())

    def _gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.parameters, materialize_grads=True)

    def _report(
        self, metrics: dict[str, list[Tensor]], rollout: Rollout, advantage: Tensor
    ) -> dict[str, float]:
        """The means over minibatches, fetched from the device at once."""
        first_ratio = metrics.pop("ppo/ratio_deviation")[0]
        valid = rollout.valid
        report = {key: torch.stack(values).mean() for key, values in metrics.items()}
        report["ppo/ratio_deviation"] = first_ratio
        report["ppo/explained_variance"] = explained_variance(
            rollout.value[valid], (rollout.value + advantage)[valid]
        )
        values = torch.stack([value.float() for value in report.values()]).tolist()
        result = dict(zip(report, values, strict=True))
        total, norm = (torch.tensor(result[key]) for key in ("loss/total", "ppo/grad_norm"))
        if not (total.isfinite() and norm.isfinite()):
            raise NonFiniteLossError(
                f"the loss became non-finite (loss/total={float(total)}, "
                f"ppo/grad_norm={float(norm)}); lower ppo.learning_rate or ppo.max_grad_norm"
            )
        return result


def _combined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A minibatch's metrics from its parts': sums of weighted means, and the largest deviation."""
    stacked = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
    return {
        key: values.amax(0) if key == "ppo/ratio_deviation" else values.sum(0)
        for key, values in stacked.items()
    }


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with its numbers in the order of the weight's in storage.

    `autograd.grad` leaves them in any order, as that of a convolution's channels, where `backward`
    would not; and torch's fused Adam pairs both by their place in storage on a CPU.
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _summed(parts: list[_Learned]) -> list[Tensor]:
    """A minibatch's gradients: its parts', added in their order."""
    total = list(parts[0].gradients)
    for part in parts[1:]:
        total = [one + other for one, other in zip(total, part.gradients, strict=True)]
    return total


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def _inputs(spans: Spans) -> PolicyInputs:
    return PolicyInputs(
        spans.observation, spans.previous_action, spans.previous_reward, spans.is_first
    )


def _memory(spans: Spans) -> MemoryState:
    return MemoryState(spans.window, spans.window_length, spans.long_term, spans.segment_step)
