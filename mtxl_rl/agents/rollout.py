"""The rollout buffer: T steps of B environments, the memory's timeline, and its snapshots.

It knows no network. The window's layer inputs of a whole rollout are stored once, as a timeline
[B, N, M + T, D]; the short-term memory at any step is a slice of it. Long-term memories are stored
where a span can start. Memory therefore costs M + T, not T x M as with a window per step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# B environments, T steps, N layers, M window, D width, L steps of a span, G = T / L spans,
# I spans of a minibatch.

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of each leaf of an observation."""


@dataclass(kw_only=True, frozen=True)
class RolloutShape:
    """The sizes of a rollout; everything in bytes follows from them."""

    num_envs: int
    num_steps: int
    span_length: int
    observation: Shapes
    action: tuple[tuple[int, ...], torch.dtype]
    num_layers: int
    window_length: int
    """0 in a torso without a window, which then has no timeline either."""
    width: int
    memory_shape: tuple[int, ...]
    """Of one environment's long-term memories, [A, ...]."""
    memory_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check that spans fill the rollout."""
        assert self.num_steps % self.span_length == 0, (self.num_steps, self.span_length)

    @property
    def num_spans(self) -> int:
        """Spans per environment, G."""
        return self.num_steps // self.span_length

    @property
    def timeline_length(self) -> int:
        """Steps of the timeline, M + T."""
        return self.window_length + self.num_steps if self.window_length else 0

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the steps, the timeline (B N (M + T) D) and the snapshots."""
        batch, steps, item = self.num_envs, self.num_steps, self.memory_dtype.itemsize
        per_step = sum(_bytes(*leaf) for leaf in self.observation.values()) + 4 + 4 + 3
        steps_bytes = batch * (steps * per_step + (steps + 1) * (_bytes(*self.action) + 4))
        timeline = self.num_layers * self.timeline_length * self.width * item
        memory = _size(self.memory_shape) * item
        return {
            "steps": steps_bytes,
            "timeline": batch * timeline,
            "snapshots": batch * self.num_spans * (memory + 16),
        }


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return _size(shape) * dtype.itemsize


class Spans(NamedTuple):
    """A minibatch: I whole spans of L steps, each with the memory at its start."""

    observation: dict[str, Tensor]
    previous_action: Tensor
    previous_reward: Float[Tensor, "I L"]
    is_first: Bool[Tensor, "I L"]
    action: Tensor
    log_prob: Float[Tensor, "I L"]
    value: Float[Tensor, "I L"]
    valid: Bool[Tensor, "I L"]
    advantage: Float[Tensor, "I L"]
    value_target: Float[Tensor, "I L"]
    window: Float[Tensor, "I N M D"]
    window_length: Int[Tensor, " I"]
    long_term: Float[Tensor, "I A *memory"]
    segment_step: Int[Tensor, " I"]

    def split(self, num_parts: int) -> list["Spans"]:
        """At most `num_parts` minibatches of whole spans, as equal as may be; views of this one."""
        observation = {key: leaf.chunk(num_parts) for key, leaf in self.observation.items()}
        fields = [field.chunk(num_parts) for field in self[1:]]
        return [
            Spans({key: leaf[i] for key, leaf in observation.items()}, *(f[i] for f in fields))
            for i in range(len(fields[0]))
        ]


class Rollout:
    """Preallocated tensors, written row by row and read span by span.

    Row t holds what the agent saw and did at step t. `action` and `reward` have one column more:
    column 0 is the step before the rollout, so that [:, :-1] are the previous actions and rewards.
    A row that is not `valid` follows an episode's end: it carries the final observation, its action
    was ignored, and it counts in no loss.
    """

    def __init__(self, shape: RolloutShape, *, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        batch, steps, spans = shape.num_envs, shape.num_steps, shape.num_spans

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.observation = {
            key: zeros(batch, steps, *leaf, dtype=dtype)
            for key, (leaf, dtype) in shape.observation.items()
        }
        self.action = zeros(batch, steps + 1, *shape.action[0], dtype=shape.action[1])
        self.reward = zeros(batch, steps + 1)
        self.log_prob = zeros(batch, steps)
        self.value = zeros(batch, steps)
        self.terminated = zeros(batch, steps, dtype=torch.bool)
        self.valid = zeros(batch, steps, dtype=torch.bool)
        self.is_first = zeros(batch, steps, dtype=torch.bool)
        self.bootstrap_value = zeros(batch)
        layers, dtype = shape.num_layers, shape.memory_dtype
        self.timeline = zeros(batch, layers, shape.timeline_length, shape.width, dtype=dtype)
        self.long_term = zeros(spans, batch, *shape.memory_shape, dtype=dtype)
        self.window_length = zeros(spans, batch, dtype=torch.long)
        self.segment_step = zeros(spans, batch, dtype=torch.long)

    def nbytes_by_part(self) -> dict[str, int]:
        """Bytes really held, by the parts of `RolloutShape.bytes_by_part`."""
        steps = [*self.observation.values(), self.action, self.reward, self.log_prob, self.value]
        steps += [self.terminated, self.valid, self.is_first]
        snapshots = [self.long_term, self.window_length, self.segment_step]
        return {
            "steps": sum(field.nbytes for field in steps),
            "timeline": self.timeline.nbytes,
            "snapshots": sum(field.nbytes for field in snapshots),
        }

    def snapshot(
        self,
        step: int,
        rows: slice,
        *,
        long_term: Tensor,
        window_length: Tensor,
        segment_step: Tensor,
    ) -> None:
        """Store the memory of some environments as it is before `step`, where a span starts."""
        span, offset = divmod(step, self.shape.span_length)
        assert offset == 0, (step, self.shape.span_length)
        self.long_term[span, rows] = long_term
        self.window_length[span, rows] = window_length
        self.segment_step[span, rows] = segment_step

    def refresh(self, span: int, *, long_term: Tensor, window: Tensor, valid: Tensor) -> None:
        """Replace the memory before a span: the `valid` [B, M] entries of the window, and the rest.

        Entries that are not valid there may be valid for an earlier span, so they stay.
        """
        step = span * self.shape.span_length
        held = self.timeline[:, :, step : step + self.shape.window_length]
        torch.where(valid[:, None, :, None], window, held, out=held)
        self.long_term[span] = long_term

    def minibatches(
        self,
        advantage: Float[Tensor, "B T"],
        *,
        num_minibatches: int,
        generator: torch.Generator,
    ) -> Iterator[Spans]:
        """Every span of every environment once, in `num_minibatches` random, equal parts.

        The value target of a step is its stored value plus `advantage`, before normalisation;
        `advantage` is normalised over the valid steps of the rollout.
        """
        valid = self.valid
        mean = (advantage * valid).sum() / valid.sum()
        variance = ((advantage - mean).square() * valid).sum() / valid.sum()
        normalised = (advantage - mean) / (variance.sqrt() + 1e-8)
        count = self.shape.num_envs * self.shape.num_spans
        order = torch.randperm(count, generator=generator).to(self.timeline.device)
        for items in order.chunk(num_minibatches):
            yield self.spans(items, normalised, self.value + advantage)

    def spans(
        self,
        items: Int[Tensor, " I"],
        advantage: Float[Tensor, "B T"],
        target: Float[Tensor, "B T"],
    ) -> Spans:
        """The chosen spans; span g of environment b is item b x G + g."""
        spans, length, window = (
            self.shape.num_spans,
            self.shape.span_length,
            self.shape.window_length,
        )
        env, span = items // spans, items % spans
        step = span[:, None] * length + torch.arange(length, device=items.device)
        at = (env[:, None], step)
        window_step = span[:, None] * length + torch.arange(window, device=items.device)
        return Spans(
            observation={key: field[at] for key, field in self.observation.items()},
            previous_action=self.action[at],
            previous_reward=self.reward[at],
            is_first=self.is_first[at],
            action=self.action[env[:, None], step + 1],
            log_prob=self.log_prob[at],
            value=self.value[at],
            valid=self.valid[at],
            advantage=advantage[at],
            value_target=target[at],
            window=self.timeline[env[:, None], :, window_step].transpose(1, 2),
            window_length=self.window_length[span, env],
            long_term=self.long_term[span, env],
            segment_step=self.segment_step[span, env],
        )
