"""The slots of the Memory Transformer-XL: written by linear attention through a gated cell."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.gates import build_cell
from mtxl_rl.torso.long_term.interface import LongTermMemory
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, J segments, S steps of a segment, D width, H heads, E head width, L slots, X keys.

# With the usual initial weights a softmax over a segment is close to a mean, so that writes hardly
# depend on the segment. Larger queries and keys let each feature of a key select a few steps.
QUERY_GAIN, KEY_GAIN = 3.0, 6.0
SINK = 4.0
"""Initial value of the sink, the usual size of keys at initialisation."""


class Context(NamedTuple):
    """Keys and values summarised for linear attention: sums over the keys, per feature of the key.

    The numerator and the denominator of the softmax over the keys are separate, both divided by
    exp(peak), so that the contexts of two sets of keys can be merged.
    """

    peak: Float[Tensor, "*batch H E"]
    total: Float[Tensor, "*batch H E"]
    weighted: Float[Tensor, "*batch H E V"]

    @classmethod
    def of(
        cls, keys: Float[Tensor, "*batch H X E"], values: Float[Tensor, "*batch H X V"]
    ) -> "Context":
        """The context of some keys and their values."""
        peak = keys.amax(dim=-2)
        weights = (keys - peak[..., None, :]).exp()
        return cls(peak, weights.sum(dim=-2), weights.mT @ values)

    def merge(self, other: "Context") -> "Context":
        """The context of the union of two sets of keys."""
        peak = torch.maximum(self.peak, other.peak)
        scales = [(part.peak - peak).exp() for part in (self, other)]
        return Context(
            peak,
            self.total * scales[0] + other.total * scales[1],
            self.weighted * scales[0][..., None] + other.weighted * scales[1][..., None],
        )

    def with_sink(self, sink: Float[Tensor, "H E"]) -> "Context":
        """The context with an additional key `sink` whose value is zero."""
        total, weighted = torch.ones_like(self.total), torch.zeros_like(self.weighted)
        return self.merge(Context(sink.to(total.dtype).expand_as(total), total, weighted))

    def attend(self, queries: Float[Tensor, "*batch H L E"]) -> Float[Tensor, "*batch H L V"]:
        """softmax(Q) (softmax(K)^T V) (Shen et al. 2018, arXiv 1812.01243, eq. 4).

        The softmax of the queries runs over features, the softmax of the keys over keys.
        """
        return queries.softmax(dim=-1) @ (self.weighted / self.total[..., None])


def retention_biases(num_slots: int, *, max_half_life: float) -> Float[Tensor, " L"]:
    """Gate biases with half-lives of 1 to `max_half_life` updates, spaced geometrically.

    A cell keeps sigmoid(bias) per update; a half-life of n updates is sigmoid(bias) = 2^(-1/n).
    """
    half_life = torch.logspace(0, math.log10(max_half_life), num_slots)
    return torch.logit(2 ** (-1 / half_life))


class SlotMemory(LongTermMemory):
    """L slots, updated once per segment (the Memory Transformer-XL of 2020).

    Queries come from the slots; keys and values come from the segment's layer inputs and from the
    slots themselves. The readout of linear attention updates each slot through a gated cell,
    `write_iterations` times. Shared slots are written from the inputs of all their layers: the
    segments that they encode are those of the layers, one after another.

    Learned vectors identify the slot in queries and the layer in keys. Only the cell changes the
    carried state, so a closed gate preserves it. Cells and zero starts keep every feature within
    -1 .. 1.
    """

    reads_slots = writes_whole_segments = True

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, num_heads, num_slots = config.width, config.num_heads, config.slots.num_slots
        num_sources = len(config.layers_with_memory) if config.is_shared else 1
        self.memory_shape = (num_slots, width)
        self.num_heads = num_heads
        self.write_iterations = config.slots.write_iterations
        self.detach_inputs = config.slots.detach_inputs
        self.identity = nn.Parameter(torch.randn(num_slots, width))
        self.depth = nn.Parameter(torch.randn(num_sources, width) * 0.1)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.sink = nn.Parameter(torch.full((num_heads, width // num_heads), SINK))
        with torch.no_grad():
            self.query.weight *= QUERY_GAIN
            self.key_value.weight[:width] *= KEY_GAIN
        # The half-life counts writes, while the cell's bias acts once per iteration.
        max_half_life = self.write_iterations * config.slots.max_half_life
        bias = retention_biases(num_slots, max_half_life=max_half_life)
        self.cell = build_cell(
            config.slots.cell, width, bias=bias[:, None].expand(num_slots, width)
        )

    def encode(
        self,
        segments: Float[Tensor, "B J S D"],
        valid: Bool[Tensor, "B J S"] | None = None,
    ) -> Context:
        """The segments' context."""
        assert valid is None, "slots are written from whole segments"
        if self.detach_inputs:
            segments = segments.detach()
        by_layer = segments.unflatten(2, (len(self.depth), -1)) + self.depth[:, None]
        return self._context(by_layer.flatten(2, 3))

    def write(
        self, memory: Float[Tensor, "B L D"], encoded: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """The slots after one segment."""
        for _ in range(self.write_iterations):
            memory = self.cell(memory, self._update(memory, Context(*encoded)))
        return memory

    def slots(self, versions: Float[Tensor, "*batch L D"]) -> Float[Tensor, "*batch L D"]:
        """The memory itself, in the weights' dtype."""
        return versions.to(self.identity.dtype)

    def diagnostics(
        self,
        steps: Tensor,  # noqa: ARG002
        versions: Float[Tensor, "B V L D"],
        encoded: tuple[Tensor, ...],
    ) -> Diagnostics:
        """Distance that each write moved each slot; share its first iteration kept, [B, J, L]."""
        before, after = versions[:, :-1], versions[:, 1:]
        update = self._update(before, Context(*encoded))
        return {
            "memory/moved": (after - before).norm(dim=-1),
            "memory/retention": self.cell.retention(before, update).mean(-1),
        }

    def _context(self, steps: Float[Tensor, "*batch X D"]) -> Context:
        full = torch.promote_types(steps.dtype, torch.float32)
        pairs = self.key_value(steps).to(full)
        keys, values = rearrange(pairs, "... x (two h e) -> two ... h x e", two=2, h=self.num_heads)
        with torch.autocast(steps.device.type, enabled=False):
            return Context.of(keys, values)

    def _update(self, memory: Tensor, context: Context) -> Tensor:
        """The readout of linear attention for each slot."""
        slots = self.slots(memory)
        queries = self.query(slots + self.identity).to(memory.dtype)
        queries = rearrange(queries, "... l (h e) -> ... h l e", h=self.num_heads)
        with torch.autocast(memory.device.type, enabled=False):
            merged = context.merge(self._context(slots)).with_sink(self.sink)
            readout = merged.attend(queries)
        readout = rearrange(readout, "... h l e -> ... l (h e)")
        return self.output(readout.to(self.identity.dtype))
