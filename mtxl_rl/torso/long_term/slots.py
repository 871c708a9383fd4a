"""The slots of the Memory Transformer-XL: written by linear attention through a gated cell."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.torso.gates import build_cell
from mtxl_rl.torso.record import Record

# B rows, J segments, S steps of a segment, D width, H heads, E head width, L slots, X keys.

# At the usual start a softmax over a segment is nearly its mean, and what is written hardly depends
# on what happened. Larger queries and keys let each feature of a key pick a few steps.
QUERY_GAIN, KEY_GAIN = 3.0, 6.0
SINK = 4.0
"""Where the sink starts: keys of that size are ordinary at the start."""


class Context(NamedTuple):
    """Keys and values as linear attention keeps them: sums over the keys, per feature of the key.

    The softmax over the keys is kept apart into its numerator and denominator, both divided by
    exp(peak), so that two sets of keys can be joined.
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

    def join(self, other: "Context") -> "Context":
        """The context of both sets of keys."""
        peak = torch.maximum(self.peak, other.peak)
        scales = [(part.peak - peak).exp() for part in (self, other)]
        return Context(
            peak,
            self.total * scales[0] + other.total * scales[1],
            self.weighted * scales[0][..., None] + other.weighted * scales[1][..., None],
        )

    def with_sink(self, sink: Float[Tensor, "H E"]) -> "Context":
        """With one more key, `sink`, whose value is zero."""
        total, weighted = torch.ones_like(self.total), torch.zeros_like(self.weighted)
        return self.join(Context(sink.to(total.dtype).expand_as(total), total, weighted))

    def attend(self, queries: Float[Tensor, "*batch H L E"]) -> Float[Tensor, "*batch H L V"]:
        """softmax(Q) (softmax(K)^T V) (Shen et al. 2018, arXiv 1812.01243, eq. 4).

        The softmax of the queries runs over features, that of the keys over the keys.
        """
        return queries.softmax(dim=-1) @ (self.weighted / self.total[..., None])


def retention_biases(num_slots: int, *, max_half_life: float) -> Float[Tensor, " L"]:
    """Gate biases whose half-lives, in updates, spread from 1 to `max_half_life` by equal ratios.

    A cell keeps sigmoid(bias) per update; a half-life of n updates is sigmoid(bias) = 2^(-1/n).
    """
    half_life = torch.logspace(0, math.log10(max_half_life), num_slots)
    return torch.logit(2 ** (-1 / half_life))


class SlotMemory(nn.Module):
    """L slots, updated once per segment (the Memory Transformer-XL of 2020).

    Queries come from the slots, keys and values from the segment's hidden states of one or more
    layers and from the slots themselves; what linear attention finds moves each slot through a
    gated cell, `write_iterations` times. Which slot a slot is, and which layer a hidden state comes
    from, is told by learned vectors that join queries and keys alone: nothing but the cell ever
    changes what is carried, so a closed gate carries it for good. Cells and zero starts keep every
    feature within -1 .. 1.
    """

    def __init__(
        self,
        width: int,
        *,
        num_slots: int,
        num_sources: int,
        num_heads: int,
        cell: str,
        write_iterations: int,
        max_half_life: float,
        detach_inputs: bool,
    ) -> None:
        super().__init__()
        self.memory_shape: tuple[int, ...] = (num_slots, width)
        self.num_heads = num_heads
        self.write_iterations = write_iterations
        self.detach_inputs = detach_inputs
        self.identity = nn.Parameter(torch.randn(num_slots, width))
        self.depth = nn.Parameter(torch.randn(num_sources, width) * 0.1)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.sink = nn.Parameter(torch.full((num_heads, width // num_heads), SINK))
        with torch.no_grad():
            self.query.weight *= QUERY_GAIN
            self.key_value.weight[:width] *= KEY_GAIN
        # The half-life is counted in writes, the cell's bias acts once per iteration.
        bias = retention_biases(num_slots, max_half_life=write_iterations * max_half_life)
        self.cell = build_cell(cell, width, bias=bias[:, None].expand(num_slots, width))

    def slots(self, memory: Float[Tensor, "*batch L D"]) -> Float[Tensor, "*batch L D"]:
        """The memory itself, in the type of the weights."""
        return memory.to(self.identity.dtype)

    def encode(self, *sources: Float[Tensor, "B J S D"]) -> tuple[Tensor, ...]:
        """The segments' context."""
        if self.detach_inputs:
            sources = tuple(source.detach() for source in sources)
        hidden = [source + depth for source, depth in zip(sources, self.depth, strict=True)]
        return self._context(torch.cat(hidden, dim=2))

    def write(
        self, memory: Float[Tensor, "B L D"], encoded: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """The slots after one segment."""
        for _ in range(self.write_iterations):
            memory = self.cell(memory, self._update(memory, Context(*encoded)))
        return memory

    def describe(self, versions: Float[Tensor, "B V L D"], encoded: tuple[Tensor, ...]) -> Record:
        """How far each write moved each slot and what its first iteration kept, [B, J, L]."""
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
        """What linear attention finds for each slot."""
        slots = self.slots(memory)
        queries = self.query(slots + self.identity).to(memory.dtype)
        queries = rearrange(queries, "... l (h e) -> ... h l e", h=self.num_heads)
        with torch.autocast(memory.device.type, enabled=False):
            found = context.join(self._context(slots)).with_sink(self.sink).attend(queries)
        found = rearrange(found, "... h l e -> ... l (h e)")
        return self.output(found.to(self.identity.dtype))
