"""The rollout buffer: T steps of B environments, the memory's timeline, and its snapshots.

It does not depend on the network. The layer inputs of a whole rollout are stored once, as a
timeline [B, N, M + T, D]; the short-term memory at any step is a slice of it. Long-term memories
are stored where a span can start. The buffer therefore holds M + T entries instead of the T x M
entries of a window per step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtxl_rl.agents.transition import PolicyInputs, Shapes, TeacherStep, Transition
from mtxl_rl.torso import Cache, MemoryState

# B environments, T steps, N layers, M window, D width, L steps of a span, G = T / L spans,
# I spans of a minibatch.


@dataclass(kw_only=True, frozen=True)
class RolloutShape:
    """Sizes of a rollout."""

    num_envs: int
    num_steps: int
    span_length: int
    observation: Shapes
    action: tuple[tuple[int, ...], torch.dtype]
    num_layers: int
    window_length: int
    """0 for a torso without a window; its timeline is empty."""
    width: int
    memory_shape: tuple[int, ...]
    """Shape of one environment's long-term memories, [A, ...]."""
    odometry_width: int = 0
    """Numbers that the torso's odometry carries per environment."""
    memory_dtype: torch.dtype = torch.float32
    """dtype of memories, rewards, values and log-probabilities."""
    teacher_width: int = 0
    """Parameters of the teacher's action distribution; 0: no teacher."""

    def __post_init__(self) -> None:
        """Check that whole spans fill the rollout."""
        assert self.num_steps % self.span_length == 0, (self.num_steps, self.span_length)

    @property
    def num_spans(self) -> int:
        """Spans per environment, G."""
        return self.num_steps // self.span_length

    @property
    def timeline_length(self) -> int:
        """Entries of the timeline, M + T."""
        return self.window_length + self.num_steps if self.window_length else 0


class Spans(NamedTuple):
    """A minibatch: I whole spans of L steps, each with the memory at its start."""

    inputs: PolicyInputs
    memory: MemoryState
    action: Tensor
    log_prob: Float[Tensor, "I L"]
    value: Float[Tensor, "I L"]
    valid: Bool[Tensor, "I L"]
    advantage: Float[Tensor, "I L"]
    value_target: Float[Tensor, "I L"]
    teacher: TeacherStep | None = None


class Rollout:
    """Preallocated tensors, written step by step and read span by span.

    Row t holds the inputs, the decision and the outcome of step t. `action` and `reward` have one
    column more: column 0 is the step before the rollout, so that [:, :-1] are the previous actions
    and rewards. A row that is not `valid` is a reset row: it carries an episode's final
    observation, its action was ignored, and it counts in no loss.
    """

    def __init__(self, shape: RolloutShape, *, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        batch, steps, spans = shape.num_envs, shape.num_steps, shape.num_spans

        def zeros(*size: int, dtype: torch.dtype = shape.memory_dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.observation = {
            key: zeros(batch, steps, *leaf, dtype=dtype)
            for key, (leaf, dtype) in shape.observation.items()
        }
        self.action = zeros(batch, steps + 1, *shape.action[0], dtype=shape.action[1])
        self.reward = zeros(batch, steps + 1)
        self.training_reward = zeros(batch, steps)
        self.log_prob = zeros(batch, steps)
        self.value = zeros(batch, steps)
        self.terminated = zeros(batch, steps, dtype=torch.bool)
        self.valid = zeros(batch, steps, dtype=torch.bool)
        self.is_first = zeros(batch, steps, dtype=torch.bool)
        self.bootstrap_value = zeros(batch)
        self.timeline = zeros(batch, shape.num_layers, shape.timeline_length, shape.width)
        self.long_term = zeros(batch, spans, *shape.memory_shape)
        self.window_length = zeros(batch, spans, dtype=torch.long)
        self.segment_step = zeros(batch, spans, dtype=torch.long)
        self.odometry = zeros(batch, spans, shape.odometry_width)
        self.teacher = (
            TeacherStep(
                zeros(batch, steps, shape.teacher_width),
                zeros(batch, steps, dtype=torch.bool),
            )
            if shape.teacher_width
            else None
        )

    @property
    def counted(self) -> Bool[Tensor, "B T"]:
        """The steps that count in PPO's losses: the valid ones that no teacher led."""
        return self.valid if self.teacher is None else self.valid & ~self.teacher.is_led

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes of the steps, the timeline and the snapshots; on device="meta" none is held."""
        steps = [*self.observation.values(), self.action, self.reward, self.log_prob, self.value]
        steps += [self.training_reward, self.terminated, self.valid, self.is_first]
        steps += self.teacher or ()
        snapshots = [self.long_term, self.window_length, self.segment_step]
        snapshots += [self.odometry]
        return {
            "steps": sum(field.nbytes for field in steps),
            "timeline": self.timeline.nbytes,
            "snapshots": sum(field.nbytes for field in snapshots),
        }

    def record(self, t: int, transition: Transition) -> None:
        """Store step t."""
        inputs, decision, is_reset_row, reward, training_reward, terminated, teacher = transition
        for key, stored in self.observation.items():
            stored[:, t] = inputs.observation[key]
        self.is_first[:, t] = inputs.is_first
        self.valid[:, t] = ~is_reset_row
        self.action[:, t], self.action[:, t + 1] = inputs.previous_action, decision.action
        self.reward[:, t], self.reward[:, t + 1] = inputs.previous_reward, reward
        self.log_prob[:, t], self.value[:, t] = decision.log_prob, decision.value
        self.training_reward[:, t] = training_reward
        self.terminated[:, t] = terminated
        if self.teacher is not None and teacher is not None:
            self.teacher.parameters[:, t] = teacher.parameters
            self.teacher.is_led[:, t] = teacher.is_led

    def starts_span(self, t: int) -> bool:
        """Whether a span starts at step t, so that `snapshot` is due before it."""
        return t % self.shape.span_length == 0

    def snapshot(self, t: int, memory: Cache | MemoryState) -> None:
        """Store the memory before step t, at which a span starts; the timeline has its window."""
        span = t // self.shape.span_length
        self.long_term[:, span] = memory.long_term
        self.window_length[:, span] = memory.window_length
        self.segment_step[:, span] = memory.segment_step
        self.odometry[:, span] = memory.odometry

    def refresh(self, span: int, state: MemoryState, *, valid: Tensor) -> None:
        """Replace the memory at a span's start by `state`.

        Of its window only the `valid` entries [B, M]: those that are not valid there may be valid
        for an earlier span and are kept.
        """
        step = span * self.shape.span_length
        stored = self.timeline[:, :, step : step + self.shape.window_length]
        torch.where(valid[:, None, :, None], state.window, stored, out=stored)
        self.long_term[:, span] = state.long_term
        self.odometry[:, span] = state.odometry

    def span_of_every_env(self, span: int) -> Spans:
        """Span `span` of every environment, without advantages and value targets."""
        every_env = torch.arange(self.shape.num_envs, device=self.value.device)
        unused = torch.zeros_like(self.value)
        return self.spans(every_env * self.shape.num_spans + span, unused, unused)

    def spans(
        self,
        items: Int[Tensor, " I"],
        advantage: Float[Tensor, "B T"],
        value_target: Float[Tensor, "B T"],
    ) -> Spans:
        """The chosen spans; span g of environment b is item b x G + g."""
        num_spans, length = self.shape.num_spans, self.shape.span_length
        env, span = items // num_spans, items % num_spans
        start = span[:, None] * length
        step = start + torch.arange(length, device=items.device)
        window_step = start + torch.arange(self.shape.window_length, device=items.device)
        row = env[:, None]
        return Spans(
            inputs=PolicyInputs(
                observation={key: leaf[row, step] for key, leaf in self.observation.items()},
                previous_action=self.action[row, step],
                previous_reward=self.reward[row, step],
                is_first=self.is_first[row, step],
            ),
            memory=MemoryState(
                window=self.timeline[row, :, window_step].transpose(1, 2),
                window_length=self.window_length[env, span],
                long_term=self.long_term[env, span],
                segment_step=self.segment_step[env, span],
                odometry=self.odometry[env, span],
            ),
            action=self.action[row, step + 1],
            log_prob=self.log_prob[row, step],
            value=self.value[row, step],
            valid=self.valid[row, step],
            advantage=advantage[row, step],
            value_target=value_target[row, step],
            teacher=(
                TeacherStep(*(field[row, step] for field in self.teacher))
                if self.teacher is not None
                else None
            ),
        )


def random_minibatches(
    num_items: int, num_minibatches: int, *, generator: torch.Generator
) -> Int[Tensor, "K n"]:
    """Every item once, in K equal random minibatches.

    Of any K consecutive items, counted from a multiple of K, each minibatch gets exactly one. So
    any process that holds a multiple of K consecutive items owns an equal share of every minibatch,
    and the minibatches do not depend on the number of processes.
    """
    order = torch.rand(num_items // num_minibatches, num_minibatches, generator=generator)
    first = torch.arange(0, num_items, num_minibatches)[:, None]
    return (first + order.argsort(dim=1)).T
