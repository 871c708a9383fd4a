"""Proximal policy optimisation over spans of segments (Schulman et al. 2017, arXiv 1707.06347)."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import record_function

from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.ppo_config import PPOConfig
from mtxl_rl.agents.ppo_loss import ppo_loss
from mtxl_rl.agents.privileged import AuxiliaryConfig
from mtxl_rl.agents.ratio_check import check_ratio
from mtxl_rl.agents.returns import gae
from mtxl_rl.agents.rollout import Rollout, Spans, random_minibatches
from mtxl_rl.agents.teacher import TeacherConfig, imitation_loss, teacher_metrics
from mtxl_rl.agents.weight_average import WeightAverage
from mtxl_rl.agents.world import Moments, World, masked_moments
from mtxl_rl.torso import window_mask

# B environments, T steps, I spans of a minibatch, L steps of a span.


class NonFiniteLossError(RuntimeError):
    """Raised when a loss or gradient is NaN or infinite; the trainer adds the last checkpoint."""


class LossWeights(NamedTuple):
    """Weights of the loss that change during a run."""

    entropy: float = 0.0
    ppo: float = 1.0
    """Sum of the surrogate, the KL penalty and the entropy bonus."""
    teacher: float = 0.0


class Targets(NamedTuple):
    """What the losses of a rollout's steps compare with."""

    advantage: Float[Tensor, "B T"]
    """Normalised over the counted steps; 0 at the others."""
    value: Float[Tensor, "B T"]
    of_advantage: Moments
    """Before the normalisation."""
    of_value: Moments


class PPO:
    """The learner: a policy, its optimiser, and one `update` per rollout.

    A minibatch consists of whole spans. A span's segments are computed again from the memory stored
    at its start, with gradients through the writes of the long-term memory. Only the memory at the
    span's start is detached.
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
        self.average = WeightAverage(config.average_iterations)
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
            targets = self._targets(rollout)
        self._update_statistics(rollout, targets.of_value)
        learning_rate = _linear(config.learning_rate, config.final_learning_rate, progress)
        if rollout.teacher is None or weights.teacher == 0:
            learning_rate *= self._slowdown(targets.of_advantage.variance.sqrt())
        self.optimizer.param_groups[0]["lr"] = learning_rate
        log: defaultdict[str, list[Tensor]] = defaultdict(list)
        num_updates = 0
        for spans in self._minibatches(rollout, targets, log):
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
        if config.average_iterations:
            self.average.update(self.policy.state_dict())
        unexplained = targets.of_advantage.variance / targets.of_value.variance
        return self._report(log, explained_variance=1 - unexplained) | {
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
            metrics |= teacher_metrics(head, student.detach(), teacher, weight)
        return loss, metrics | {"losses/total_loss": loss.detach()}

    @torch.no_grad()
    def refresh(self, rollout: Rollout) -> Float[Tensor, ""]:
        """Recompute the memories at the spans' starts with the current weights.

        The memories at the rollout's start stay: the steps before it are no longer stored.

        Returns:
            The drift: norm of the change of the spans' start memories over their norm, over the
            environments of all processes.
        """
        shape = rollout.shape
        stored, timeline = rollout.long_term.clone(), rollout.timeline.clone()
        state = rollout.span_of_every_env(0).memory
        for span in range(1, shape.num_spans):
            _, state = self.policy(rollout.span_of_every_env(span - 1).inputs, state)
            valid = window_mask(state.window_length, shape.window_length)
            rollout.refresh(span, state, valid=valid)
        changes = [rollout.long_term - stored, rollout.timeline - timeline]
        norms = torch.stack([tensor.norm() for tensor in (*changes, stored, timeline)])
        change, norm = self.world.sum(norms.square()).sqrt().unflatten(0, (2, 2)).sum(1)
        return change / (norm + 1e-8)

    def trained_weights(self) -> Mapping[str, Tensor]:
        """The weights of the trained agent: the average, where there is one."""
        return self.average.weights or self.policy.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        if self.config.average_iterations:
            self.average.load_state_dict(state["average"], device=self.device)
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

    def _targets(self, rollout: Rollout) -> Targets:
        advantage = gae(
            rollout.training_reward,
            rollout.terminated,
            rollout.valid,
            rollout.value,
            rollout.bootstrap_value,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        value = rollout.value + advantage
        of_advantage, of_value = masked_moments([advantage, value], rollout.counted, self.world)
        normalised = (advantage - of_advantage.mean) / (of_advantage.variance.sqrt() + 1e-8)
        normalised = normalised.masked_fill(~rollout.counted, 0)
        return Targets(normalised, value, of_advantage, of_value)

    def _update_statistics(self, rollout: Rollout, of_target: Moments) -> None:
        """Move the units of values and predictions towards those of the rollout."""
        if self.config.popart:
            self.policy.value_head.update_statistics(*of_target)
        for decoder in (self.policy.decoder, self.policy.movement_decoder):
            if decoder is not None:
                decoder.update_statistics(rollout.observation, rollout.valid, self.world)

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
        targets: Targets,
        log: Mapping[str, list[Tensor]],
    ) -> Iterator[Spans]:
        """The minibatches of all epochs."""
        config, world = self.config, self.world
        num_items = rollout.shape.num_envs * rollout.shape.num_spans
        first, stratum = world.rows(num_items).start, config.num_minibatches
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.memory_refresh == "epoch":
                log["memory/drift"].append(self.refresh(rollout))
            every_item = random_minibatches(
                num_items * world.size, config.num_minibatches, generator=self.generator
            )
            local_items = every_item[:, first // stratum : (first + num_items) // stratum] - first
            for items in local_items.to(self.device):
                yield rollout.spans(items, targets.advantage, targets.value)

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
        self, log: Mapping[str, list[Tensor]], *, explained_variance: Tensor
    ) -> dict[str, float]:
        """Means over minibatches (R^2: of the first epoch), fetched from the device together."""
        report = {key: torch.stack(values).mean() for key, values in log.items()}
        report["losses/ratio_deviation"] = self.world.max(log["losses/ratio_deviation"][0])
        report["losses/explained_variance"] = explained_variance
        for name in self.policy.explained_leaves:
            # Of the first epoch: the later ones have learned from the same steps.
            errors = log[f"losses/prediction_{name}"][: self.config.num_minibatches]
            report[f"auxiliary/r2_{name}"] = 1 - torch.stack(errors).mean()
        values = torch.stack([value.float() for value in report.values()]).tolist()
        result = dict(zip(report, values, strict=True))
        total, norm = result["losses/total_loss"], result["losses/grad_norm"]
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"the loss became non-finite (losses/total_loss={total}, losses/grad_norm={norm}); "
                "lower ppo.learning_rate or ppo.max_grad_norm"
            )
        return result


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)
