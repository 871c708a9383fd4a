"""Proximal policy optimisation over spans of segments (Schulman et al. 2017, arXiv 1707.06347)."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import record_function

from mtxl_rl.agents.heads import CategoricalHead, GaussianHead
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.privileged import AuxiliaryConfig
from mtxl_rl.agents.ratio_check import check_ratio
from mtxl_rl.agents.returns import gae
from mtxl_rl.agents.rollout import Rollout, Spans, random_minibatches
from mtxl_rl.agents.teacher import TeacherConfig, imitation_loss
from mtxl_rl.agents.world import World, masked_moments
from mtxl_rl.torso import window_mask
from mtxl_rl.torso.torso_config import check_at_least

# B environments, T steps, I spans of a minibatch, L steps of a span.

REFRESH = ("never", "epoch")


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """Settings of PPO."""

    rollout_length: int = 128
    """Steps of each environment per iteration, T; a multiple of bptt_segments x segment_length."""
    bptt_segments: int = 4
    """Segments per span: gradients flow through the long-term memory over this many."""
    num_epochs: int = 3
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Minibatches of each pass; must divide num_envs x spans per rollout."""
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
    kl_coef: float = 1.0
    """Weight of the KL penalty KL(old || new), averaged over steps; 0: none. It pulls each step
    back in proportion to its own change. Once a task is solved, normalised advantages are noise at
    full strength; without the penalty the policy follows it, and the few steps that decide an
    episode change far before the mean KL reaches `target_kl`."""
    advantage_floor: float = 1.0
    """Slow down where the advantages' deviation is below this times the returns' deviation: the
    learning rate shrinks in proportion; 0: never. Adam normalises gradients, so the weights move
    as far on noise as on a signal, and once a task is solved only noise is left. Needs popart."""
    coef: float = 1.0
    """Weight of the surrogate, the KL penalty and the entropy bonus at the start; 0 only imitates
    the teacher."""
    final_coef: float = 1.0
    """The same after teacher.steps; linear in between."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    popart: bool = True
    """Predict values, and weigh their loss, in units of the returns' deviation (PopArt)."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float = 0.02
    """Stop learning from a rollout when a minibatch's approx_kl exceeds 1.5 times this; 0: never.
    Near a deterministic policy, clipping does not bound the KL; this does."""
    memory_refresh: str = "never"
    """When to recompute the stored memories with the current weights: never, or before every epoch
    but the first."""
    ratio_bound: float = 0.0
    """Largest |ratio - 1| before an iteration's first update, unless rounding explains a larger one
    in the same minibatch; 0: 1e-4, or 0.25 in bfloat16."""

    def __post_init__(self) -> None:
        """Check ranges."""
        counts = ("rollout_length", "bptt_segments", "num_epochs", "num_minibatches")
        check_at_least(self, 1, *counts, prefix="ppo.")
        coefs = (
            "coef", "final_coef", "kl_coef", "advantage_floor", "value_coef",
            "entropy_coef", "final_entropy_coef",
        )  # fmt: skip
        bounds = ("final_learning_rate", "target_kl", "ratio_bound")
        check_at_least(self, 0, *coefs, *bounds, prefix="ppo.")
        for field in (*coefs, "learning_rate", "final_learning_rate"):
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
    """Raised when a loss or gradient is NaN or infinite; the trainer adds the last checkpoint."""


def ppo_loss(
    log_prob: Float[Tensor, "I L"],
    entropy: Float[Tensor, "I L"],
    value: Float[Tensor, "I L"],
    spans: Spans,
    *,
    num_valid: Tensor | None = None,
    value_deviation: Tensor | float = 1.0,
    clip_coef: float,
    kl_coef: float,
    value_coef: float,
    entropy_coef: Tensor | float,
    coef: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped surrogate, KL penalty, value and entropy terms, averaged over the valid steps.

    L = coef (-min(rho A, clip(rho, 1 - c, 1 + c) A) + kl_coef (rho - 1 - log rho)
              - entropy_coef H) + value_coef (V - target)^2 / 2,
    rho = exp(log_prob - stored log_prob); eqs. 7 to 9 of the paper. rho - 1 - log rho estimates
    KL(old || new) without bias and is never negative (Schulman 2020, "Approximating KL
    divergence"). V and the target are measured in units of `value_deviation`. In a data-parallel
    run `num_valid` counts the valid steps of all processes: then the processes' losses and metrics
    sum to those of the whole minibatch.
    """
    weight = spans.valid / (spans.valid.sum() if num_valid is None else num_valid).clamp(min=1)
    # A weight of zero alone is not enough: an invalid step may overflow, and zero times inf is NaN.
    log_ratio = (log_prob - spans.log_prob).masked_fill(~spans.valid, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    surrogate = torch.minimum(ratio * spans.advantage, clipped * spans.advantage)
    policy_loss = -(weight * surrogate).sum()
    value_error = (value - spans.value_target) / value_deviation
    value_loss = 0.5 * (weight * value_error.square()).sum()
    mean_entropy = (weight * entropy).sum()
    approx_kl = (weight * (ratio - 1 - log_ratio)).sum()
    loss = policy_loss + kl_coef * approx_kl - entropy_coef * mean_entropy
    loss = coef * loss + value_coef * value_loss
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_coef).to(weight.dtype)
        metrics = {
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/entropy": mean_entropy,
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": (weight * outside).sum(),
            "losses/ratio_deviation": (ratio - 1).abs().max(),
        }
    return loss, {key: metric.detach() for key, metric in metrics.items()}


class LossWeights(NamedTuple):
    """Weights of the loss that change during a run."""

    entropy: float = 0.0
    ppo: float = 1.0
    """Of the surrogate, the KL penalty and the entropy bonus."""
    teacher: float = 0.0


class PPO:
    """The learner: a policy, its optimiser, and one `update` per rollout.

    A minibatch consists of whole spans. From the memory stored at a span's start its segments are
    computed again, with gradients flowing through the writes of the long-term memory; only the
    memory at the span's start is detached.
    """

    def __init__(
        self,
        policy: Policy,
        config: PPOConfig,
        *,
        auxiliary: AuxiliaryConfig | None = None,
        teacher: TeacherConfig | None = None,
        world: World | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.auxiliary = auxiliary or AuxiliaryConfig()
        self.teacher = teacher or TeacherConfig()
        self.world = world or World()
        self.parameters = list(policy.parameters())
        self.device = self.parameters[0].device
        # fused: one kernel updates all parameters, on CPUs and GPUs.
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.generator = torch.Generator().manual_seed(torch.initial_seed())
        is_narrow = policy.config.precision == "bfloat16"
        self.ratio_bound = config.ratio_bound or (0.25 if is_narrow else 1e-4)

    def update(
        self, rollout: Rollout, *, progress: float, teacher_progress: float = 1.0
    ) -> dict[str, float]:
        """Learn from one rollout.

        Args:
            rollout: where the policy acted with its current weights.
            progress: the share of the run that is over, in 0 .. 1, for the schedules.
            teacher_progress: the same for the schedules of the teacher and of `ppo.coef`.

        Returns:
            Metrics: means over the minibatches.

        Raises:
            NonFiniteLossError: a loss or gradient was not finite.
            RuntimeError: acting and learning disagree; see `check_ratio`.
        """
        config = self.config
        weights = self._loss_weights(progress, teacher_progress)
        with record_function("advantages"):
            advantage = self._advantage(rollout)
            mean, variance = masked_moments(advantage, rollout.counted, self.world)
            deviation = variance.sqrt()
            normalised = (advantage - mean) / (deviation + 1e-8)
            normalised = normalised.masked_fill(~rollout.counted, 0)
            value_target = rollout.value + advantage
        self._update_statistics(rollout, value_target)
        learning_rate = _linear(config.learning_rate, config.final_learning_rate, progress)
        if rollout.teacher is None or weights.teacher == 0:
            learning_rate *= self._slowdown(deviation)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        log: defaultdict[str, list[Tensor]] = defaultdict(list)
        num_updates = 0
        for spans in self._minibatches(rollout, normalised, value_target, log):
            self.optimizer.zero_grad()
            loss, metrics = self.loss(spans, weights)
            with record_function("backward"):
                loss.backward()
            metrics = self._sum_over_processes(metrics)
            for key, metric in metrics.items():
                log[key].append(metric)
            if num_updates == 0:
                ratio_deviation = float(metrics["losses/ratio_deviation"])
                check_ratio(self.policy, spans, ratio_deviation, bound=self.ratio_bound)
            elif self._exceeds_target_kl(metrics):
                break
            with record_function("optimizer"):
                grad_norm = self._optimizer_step(metrics["losses/total_loss"])
            log["losses/grad_norm"].append(grad_norm)
            num_updates += 1
        return self._report(log, rollout, advantage) | {
            "charts/learning_rate": learning_rate,
            "charts/entropy_coef": weights.entropy,
            "losses/epochs": num_updates / config.num_minibatches,
        }

    def loss(
        self, spans: Spans, weights: LossWeights
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss and metrics of a minibatch; over several processes, they sum to the minibatch's."""
        policy, head = self.policy, self.policy.action_head
        outputs, _ = policy(spans.inputs, spans.memory)
        is_led = torch.zeros_like(spans.valid) if spans.teacher is None else spans.teacher.is_led
        counted = spans._replace(valid=spans.valid & ~is_led)
        num_valid, num_counted = self.world.sum(
            torch.stack([spans.valid.sum(), counted.valid.sum()])
        ).clamp(min=1)
        loss, metrics = ppo_loss(
            head.log_prob(outputs.action_parameters, spans.action),
            head.entropy(outputs.action_parameters),
            outputs.value,
            counted,
            num_valid=num_counted,
            value_deviation=policy.value_head.deviation if self.config.popart else 1.0,
            clip_coef=self.config.clip_coef,
            kl_coef=self.config.kl_coef,
            value_coef=self.config.value_coef,
            entropy_coef=weights.entropy,
            coef=weights.ppo,
        )
        weight = spans.valid / num_valid
        for name, error in outputs.prediction_losses.items():
            prediction_loss = (weight * error).sum()
            loss = loss + self.auxiliary.coef * prediction_loss
            metrics[f"losses/prediction_{name}"] = prediction_loss.detach()
        if spans.teacher is not None:
            student, teacher = outputs.action_parameters, spans.teacher.parameters
            imitation = (weight * imitation_loss(head, student, teacher, self.teacher)).sum()
            loss = loss + weights.teacher * imitation
            metrics["losses/imitation"] = imitation.detach()
            metrics |= _teacher_metrics(head, student.detach(), teacher, weight)
        return loss, metrics | {"losses/total_loss": loss.detach()}

    @torch.no_grad()
    def refresh(self, rollout: Rollout) -> Float[Tensor, ""]:
        """Recompute the memories at the spans' starts with the current weights.

        The memories at the rollout's start stay: the steps before it are no longer stored.

        Returns:
            The drift: norm of the change of the spans' start memories over their norm.
        """
        shape = rollout.shape
        stored, timeline = rollout.long_term.clone(), rollout.timeline.clone()
        state = rollout.span_of_every_env(0).memory
        for span in range(1, shape.num_spans):
            _, state = self.policy(rollout.span_of_every_env(span - 1).inputs, state)
            valid = window_mask(state.window_length, shape.window_length)
            rollout.refresh(span, long_term=state.long_term, window=state.window, valid=valid)
        change = (rollout.long_term - stored).norm() + (rollout.timeline - timeline).norm()
        return change / (stored.norm() + timeline.norm() + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())

    def _loss_weights(self, progress: float, teacher_progress: float) -> LossWeights:
        """The scheduled weights of the loss; see `update`."""
        config = self.config
        return LossWeights(
            entropy=_linear(config.entropy_coef, config.final_entropy_coef, progress),
            ppo=_linear(config.coef, config.final_coef, teacher_progress),
            teacher=self.teacher.coef_at(teacher_progress),
        )

    def _advantage(self, rollout: Rollout) -> Float[Tensor, "B T"]:
        return gae(
            rollout.training_reward,
            rollout.terminated,
            rollout.valid,
            rollout.value,
            rollout.bootstrap_value,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )

    def _update_statistics(self, rollout: Rollout, value_target: Float[Tensor, "B T"]) -> None:
        """Move the units of values and predictions towards those of the rollout."""
        if self.config.popart:
            moments = masked_moments(value_target, rollout.counted, self.world)
            self.policy.value_head.update_statistics(*moments)
        if self.policy.decoder is not None:
            self.policy.decoder.update_statistics(rollout.observation, rollout.valid, self.world)

    def _slowdown(self, advantage_deviation: Float[Tensor, ""]) -> float:
        """Factor of the learning rate, at most 1; see `PPOConfig.advantage_floor`."""
        floor = self.config.advantage_floor * self.policy.value_head.deviation
        if not (self.config.popart and floor > 0):
            return 1.0
        # NaN: a teacher leads all environments.
        return float((advantage_deviation / floor).clamp(max=1).nan_to_num(1.0))

    def _minibatches(
        self,
        rollout: Rollout,
        advantage: Float[Tensor, "B T"],
        value_target: Float[Tensor, "B T"],
        log: Mapping[str, list[Tensor]],
    ) -> Iterator[Spans]:
        """The minibatches of all epochs, with normalised advantages."""
        config, world = self.config, self.world
        num_items = rollout.shape.num_envs * rollout.shape.num_spans
        first, stratum = world.rows(num_items).start, config.num_minibatches
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.memory_refresh == "epoch":
                log["memory/drift"].append(self.refresh(rollout))
            every_item = random_minibatches(
                num_items * world.size, config.num_minibatches, generator=self.generator
            )
            own = every_item[:, first // stratum : (first + num_items) // stratum] - first
            for items in own.to(self.device):
                yield rollout.spans(items, advantage, value_target)

    def _sum_over_processes(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum gradients and metrics over the processes; `ratio_deviation` stays local."""
        sums = self.world.sum_gradients(self.parameters, list(metrics.values()))
        deviation = metrics["losses/ratio_deviation"]
        return dict(zip(metrics, sums, strict=True)) | {"losses/ratio_deviation": deviation}

    def _exceeds_target_kl(self, metrics: Mapping[str, Tensor]) -> bool:
        target_kl = self.config.target_kl
        return target_kl > 0 and float(metrics["losses/approx_kl"]) > 1.5 * target_kl

    def _optimizer_step(self, loss: Tensor) -> Tensor:
        """Clip the gradients and update the weights, unless loss or gradients are not finite.

        Returns:
            The norm of the gradients before clipping.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        # torch.amp.GradScaler's way to make a fused optimiser skip a step without synchronisation.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm

    def _report(
        self, log: Mapping[str, list[Tensor]], rollout: Rollout, advantage: Tensor
    ) -> dict[str, float]:
        """Means over minibatches, fetched from the device together."""
        report = {key: torch.stack(values).mean() for key, values in log.items()}
        report["losses/ratio_deviation"] = self.world.max(log["losses/ratio_deviation"][0])
        _, unexplained = masked_moments(advantage, rollout.counted, self.world)
        _, variance = masked_moments(rollout.value + advantage, rollout.counted, self.world)
        report["losses/explained_variance"] = 1 - unexplained / variance
        decoder = self.policy.decoder
        for name in decoder.vectors if decoder is not None else ():
            report[f"auxiliary/r2_{name}"] = 1 - report[f"losses/prediction_{name}"]
        values = torch.stack([value.float() for value in report.values()]).tolist()
        result = dict(zip(report, values, strict=True))
        total, norm = result["losses/total_loss"], result["losses/grad_norm"]
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"the loss became non-finite (losses/total_loss={total}, losses/grad_norm={norm}); "
                "lower ppo.learning_rate or ppo.max_grad_norm"
            )
        return result


def _teacher_metrics(
    head: CategoricalHead | GaussianHead, student: Tensor, teacher: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    """Share of steps whose most probable actions agree, and the KL to the teacher."""
    agrees = (head.sample(student, None) == head.sample(teacher, None)).all(-1)
    return {
        "teacher/agreement": (weight * agrees).sum(),
        "teacher/kl": (weight * head.kl(teacher, student)).sum(),
    }


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)
