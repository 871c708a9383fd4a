"""What acting step by step keeps between two steps: a `MemoryState` that is updated in place."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtxl_rl.torso.skipping import may_skip
from mtxl_rl.torso.state import MemoryState
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, N layers, M window, L steps of the timeline, D width, H heads, E head width,
# R = M + 1 slots of the ring, A long-term memories.


@dataclass(kw_only=True)
class Cache:
    """The memory of B episodes while acting; `decode_step` updates it in place.

    Made by a torso's `prefill`, and valid as long as the weights stay the same. This class serves
    torsos without a window; `DecodeCache` adds the window.
    """

    config: TorsoConfig
    """Of the torso that made it."""
    timeline: Float[Tensor, "B N L D"]
    """Layer inputs of the window and of the steps since; L is 0 in a torso without a window."""
    long_term: Float[Tensor, "B A *memory"]
    window_length: Int[Tensor, " B"]
    segment_step: Int[Tensor, " B"]
    odometry: Float[Tensor, "B O"]

    shared: ClassVar[tuple[str, ...]] = ()
    """The tensors without rows."""
    immutable: ClassVar[tuple[str, ...]] = ("timeline", "window_length", "segment_step", "odometry")
    """The tensors that are equal in all caches of one torso and timeline."""

    @classmethod
    def of(cls, state: MemoryState, config: TorsoConfig) -> "Cache":
        """The cache of a torso without a window."""
        return cls(
            config=config,
            timeline=state.window,
            long_term=state.long_term.clone(),
            window_length=state.window_length,
            segment_step=state.segment_step,
            odometry=state.odometry,
        )

    def state(self) -> MemoryState:
        """The state after the last step, as `forward` would return it."""
        return MemoryState(
            window=self._window(),
            window_length=self.window_length.clone(),
            long_term=self.long_term.clone(memory_format=torch.contiguous_format),
            segment_step=self.segment_step.clone(),
            odometry=self.odometry.clone(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; those of a tuple are numbered."""
        tensors: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, tuple):
                tensors |= {f"{name}_{n}": tensor for n, tensor in enumerate(value)}
        return tensors

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Cache":
        """A cache of these tensors, named as in `tensors()`; missing ones are kept."""
        known = self.tensors() | dict(tensors)
        fields: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                fields[name] = known[name]
            elif isinstance(value, tuple):
                fields[name] = tuple(known[f"{name}_{n}"] for n in range(len(value)))
        return replace(self, **fields)

    def mutable_tensors(self) -> dict[str, Tensor]:
        """The tensors that differ between two caches of one torso and timeline, by name."""
        return {
            name: tensor for name, tensor in self.tensors().items() if name not in self.immutable
        }

    def copy_(self, other: "Cache") -> None:
        """Copy `other`, a cache of the same torso and timeline, keeping the tensors' addresses."""
        tensors = other.tensors()
        for name, tensor in self.mutable_tensors().items():
            tensor.copy_(tensors[name])

    def rows(self, index: Int[Tensor, " b"]) -> "Cache":
        """A cache of some rows, copied: a step of it leaves this cache unchanged."""
        return self.with_tensors(
            {name: tensor[index] for name, tensor in self._tensors_with_rows().items()}
        )

    def copy_rows_(self, index: Int[Tensor, " b"], part: "Cache") -> None:
        """Copy `part`, made by `rows(index)` and stepped since, into the rows; each row once."""
        tensors = part.tensors()
        for name, tensor in self._tensors_with_rows().items():
            tensor[index] = tensors[name]

    def _tensors_with_rows(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors().items() if name not in self.shared}

    def _window(self) -> Float[Tensor, "B N M D"]:
        return self.timeline


@dataclass(kw_only=True)
class DecodeCache(Cache):
    """A cache with a window of keys and values, projected once per step.

    Keys and values lie in rings of R = M + 1 slots. The timeline is a ring, too: after its last
    step it continues at its start.
    """

    timeline_index: Int[Tensor, "1"]
    """Index of the next step on the timeline."""
    keys: tuple[Float[Tensor, "B H R E"], ...]
    """Per layer, as separate tensors, which a step updates in place."""
    values: tuple[Float[Tensor, "B H R E"], ...]
    ring_index: Int[Tensor, "1"]
    """Where the next step goes in the rings of keys and values."""
    position_embeddings: Tensor
    """Per layer, by distance, [N, ...]; they depend on the weights alone."""
    write_buffer: tuple[Tensor, ...]
    """Per long-term memory: its value after the steps of the unfinished segment, which becomes
    `long_term` at the segment's end; [B, 0] where memories are written segment by segment."""

    shared: ClassVar[tuple[str, ...]] = ("timeline_index", "ring_index", "position_embeddings")
    immutable: ClassVar[tuple[str, ...]] = ("timeline",)

    def rows(self, index: Int[Tensor, " b"]) -> Cache:
        """A cache of some rows, copied: a step of it leaves this cache unchanged."""
        indices = {
            "timeline_index": self.timeline_index.clone(),
            "ring_index": self.ring_index.clone(),
        }
        return super().rows(index).with_tensors(indices)

    def copy_rows_(self, index: Int[Tensor, " b"], part: Cache) -> None:
        """Copy `part`, made by `rows(index)` and stepped since, into the rows; each row once.

        All rows of a cache share the rings' indices. So the rings of `part`, which has advanced,
        are turned back to where this cache's stand.
        """
        assert isinstance(part, DecodeCache)
        timeline_shift = int(self.timeline_index - part.timeline_index)
        shift = int(self.ring_index - part.ring_index)
        aligned = replace(
            part,
            timeline=part.timeline.roll(timeline_shift, dims=2),
            keys=tuple(ring.roll(shift, dims=2) for ring in part.keys),
            values=tuple(ring.roll(shift, dims=2) for ring in part.values),
        )
        super().copy_rows_(index, aligned)

    def reset(self, is_first: Bool[Tensor, " B"]) -> None:
        """Reset the rows whose episode starts.

        The rings keep what they hold: the window's length masks it, and their values are finite.
        """
        if may_skip(is_first, is_cheap=True):
            return
        counts = (self.window_length, self.segment_step)
        for tensor in (*counts, self.long_term, self.odometry, *self.write_buffer):
            tensor.masked_fill_(is_first.view(-1, *[1] * (tensor.ndim - 1)), 0)

    def ring_positions(self, reach: int) -> tuple[Int[Tensor, " R"], Bool[Tensor, "B R"]]:
        """Which position embedding belongs to each slot of the ring, and which slots are visible.

        Slot j lies (ring_index - j) mod R steps back, and embeddings begin with the largest
        distance. A row sees `reach` steps back at most.
        """
        window_length = self.config.window_length
        slot = torch.arange(window_length + 1, device=self.ring_index.device)
        order = (slot - self.ring_index - 1) % (window_length + 1)
        return order, order >= window_length - self.window_length.clamp(max=reach)[:, None]

    def append(self, layer_inputs: Float[Tensor, "B N D"]) -> Bool[Tensor, " B"]:
        """Complete a step: store its layer inputs and advance; which rows' segments end with it."""
        self.timeline.index_copy_(2, self.timeline_index, layer_inputs[:, :, None])
        self.timeline_index.add_(1).remainder_(self.timeline.shape[2])
        self.ring_index.add_(1).remainder_(self.config.window_length + 1)
        self.window_length.add_(1).clamp_(max=self.config.window_length)
        self.segment_step.add_(1)
        ended = self.segment_step == self.config.segment_length
        self.segment_step.remainder_(self.config.segment_length)
        return ended

    def last_steps(self, count: int) -> Float[Tensor, "B N count D"]:
        """The layer inputs of the last steps, the newest last."""
        step = torch.arange(-count, 0, device=self.timeline.device)
        return self.timeline.index_select(2, (self.timeline_index + step) % self.timeline.shape[2])

    def _window(self) -> Float[Tensor, "B N M D"]:
        size = self.config.window_length
        valid = window_mask(self.window_length, size)[:, None, :, None]
        return zero_invalid(self.last_steps(size), valid)


def window_mask(window_length: Int[Tensor, " B"], size: int) -> Bool[Tensor, "B M"]:
    """Which of a window's `size` entries, the newest last, are valid."""
    distance = torch.arange(size, 0, -1, device=window_length.device)
    return distance <= window_length[:, None]


def zero_invalid(field: Tensor, valid: Bool[Tensor, "..."]) -> Tensor:
    """The field with zeros where it is not valid; a product would keep a NaN."""
    return field.masked_fill(~valid, 0)
