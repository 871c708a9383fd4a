"""Attention to a sliding window, persistent pairs and the slots of a long-term memory."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.positions import build_positions, unskew
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, M window, K = M + T keys, C steps of a block, J blocks, H heads, E head width,
# P persistent pairs, V versions of L slots, X keys without a position, R = M + 1 slots of the ring.


class Slots(NamedTuple):
    """Vectors of a long-term memory, which are keys and values without a position."""

    vectors: Float[Tensor, "B V L D"]
    """Normalised; those of J + 1 versions and, last, of an empty memory; or of one version."""
    visible: Bool[Tensor, "B J C three"] | None
    """Whether each step sees version j, version j + 1 and the empty memory; None: it sees all."""


class WindowAttention(nn.Module):
    """Multi-head attention of every step to itself and its M predecessors.

    The same softmax covers the P persistent pairs (Sukhbaatar et al. 2019, arXiv 1907.01470) and
    the slots of a long-term memory, which have no position.

    With `reads_memory` the output map has D more input features: the readout of a long-term memory,
    whose heads act in parallel with those of the attention.

    `forward` and `step` compute the same function. `forward` works in blocks of at most
    `block_length` <= M queries, so that the cost per step does not depend on T.
    """

    def __init__(self, config: TorsoConfig, *, reads_memory: bool = False) -> None:
        super().__init__()
        width, num_heads, head_width = config.width, config.num_heads, config.head_width
        self.num_heads = num_heads
        self.window_length = config.window_length
        # The slots of a memory have a version per segment.
        self.block_length = config.segment_length if config.reads_slots else config.window_length
        self.scale = head_width**-0.5
        self.query = nn.Linear(width, width, bias=False)
        self.num_kv_heads = 1 if config.sublayers.one_kv_head else num_heads
        self.key_value = nn.Linear(width, 2 * self.num_kv_heads * head_width, bias=False)
        self.position = build_positions(
            config.position, width, num_heads=num_heads, window_length=config.window_length
        )
        self.output = nn.Linear(width * (1 + reads_memory), width, bias=False)
        if reads_memory:  # Initialise each half like a separate map.
            nn.init.uniform_(self.output.weight, -(width**-0.5), width**-0.5)
        shape = (2, num_heads, config.num_persistent, head_width)
        self.persistent = nn.Parameter(torch.randn(shape) * self.scale)
        self.dropout = nn.Dropout(config.sublayers.attention_dropout)
        self.output_dropout = nn.Dropout(config.sublayers.output_dropout)

    def keys_values(self, inputs: Float[Tensor, "B K D"]) -> Float[Tensor, "two B H K E"]:
        """Keys and values of normalised layer inputs."""
        pairs = rearrange(
            self.key_value(inputs), "b k (two h e) -> two b h k e", two=2, h=self.num_kv_heads
        )
        return pairs.expand(-1, -1, self.num_heads, -1, -1)

    def forward(
        self,
        inputs: Float[Tensor, "B K D"],
        age: Int[Tensor, "B T"],
        memory_readout: Float[Tensor, "B T D"] | None = None,
        slots: Slots | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend from the last T of the K = M + T normalised layer inputs.

        Args:
            inputs: the window's steps, then the T steps.
            age: how many predecessors each of the T steps may see, 0 .. M.
            memory_readout: features for the output map, with `reads_memory`.
            slots: vectors to attend to, in blocks of min(T, `block_length`) steps.
            diagnostics: where to store the attention weights.
        """
        window, num_steps = self.window_length, age.shape[1]
        block = min(self.block_length, num_steps)
        pad = -num_steps % block
        query = self.query(inputs[:, window:]) * self.scale
        keys_values = self.keys_values(inputs)
        if pad:
            query = nn.functional.pad(query, (0, 0, 0, pad))
            keys_values = nn.functional.pad(keys_values, (0, 0, 0, pad))
            age = nn.functional.pad(age, (0, pad))
        query = rearrange(query, "b (j c) (h e) -> b j h c e", c=block, h=self.num_heads)
        keys, values = self._blocks(keys_values, block)
        bias = self._attention_bias(age, block, query.dtype)
        query, logits = self.position.block(query, keys, bias)
        out, weights = self._attend(query, logits, values, slots)
        if diagnostics is not None:
            diagnostics.update(self._diagnostics(weights, num_steps))
        out = rearrange(out, "b j h c e -> b (j c) (h e)")[:, :num_steps]
        return self._output(out, memory_readout)

    def step(
        self,
        query: Float[Tensor, "B D"],
        keys: Float[Tensor, "B H R E"],
        values: Float[Tensor, "B H R E"],
        position_embeddings: Tensor,
        order: Int[Tensor, " R"],
        visible: Bool[Tensor, "B R"],
        memory_readout: Float[Tensor, "B D"] | None = None,
        slots: Slots | None = None,
    ) -> Float[Tensor, "B D"]:
        """Attend from one normalised layer input; keys and `visible` are in ring order.

        Args:
            query: the layer input.
            keys: those of the ring, including this step's; cast if narrower than the query.
            values: likewise.
            position_embeddings: of the distances M .. 0; likewise.
            order: the index of the position embedding of each slot of the ring.
            visible: the slots that each row sees.
            memory_readout: as in `forward`.
            slots: likewise, of one version.
        """
        q = rearrange(self.query(query) * self.scale, "b (h e) -> b h 1 e", h=self.num_heads)
        keys, values, position_embeddings = (
            _widened(part, q) for part in (keys, values, position_embeddings)
        )
        q, logits = self.position.step(q, keys, position_embeddings, order)
        logits = logits.masked_fill(~visible[:, None, None], -torch.inf)
        if slots is not None:  # one block of one step
            q, logits, values = q[:, None], logits[:, None], values[:, None]
        out, _ = self._attend(q, logits, values, slots)
        return self._output(out.flatten(1), memory_readout)

    def map_readout(self, memory_readout: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The part of the output that comes from a memory's features."""
        weight = self.output.weight[:, -memory_readout.shape[-1] :]
        return nn.functional.linear(memory_readout.to(weight.dtype), weight)

    def _output(self, out: Tensor, memory_readout: Tensor | None) -> Tensor:
        if memory_readout is not None:
            out = torch.cat([out, memory_readout.to(out.dtype)], dim=-1)
        mapped: Tensor = self.output_dropout(self.output(out))
        return mapped

    def _attend(
        self, query: Tensor, logits: Tensor, values: Tensor, slots: Slots | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The softmax over persistent pairs, slots and window, applied to the values of each."""
        persistent_keys, persistent_values = self.persistent
        all_logits = [_by_head(query, persistent_keys.mT)]
        all_values = [persistent_values.to(values.dtype)]
        if slots is not None:
            slot_keys, slot_values = self._slot_pairs(slots)
            slot_logits = query @ slot_keys.mT
            if slots.visible is not None:
                visible = slots.visible.repeat_interleave(slots.vectors.shape[2], dim=-1)
                slot_logits = slot_logits.masked_fill(~visible[:, :, None], -torch.inf)
            all_logits.append(slot_logits)
            all_values.append(slot_values)
        all_logits.append(logits)
        all_values.append(values)
        weights = [self.dropout(part).to(values.dtype) for part in _softmax(all_logits)]
        out = _by_head(weights[0], all_values[0])
        for weight, value in zip(weights[1:], all_values[1:], strict=True):
            out = out + weight @ value
        return out, weights

    def _slot_pairs(
        self, slots: Slots
    ) -> tuple[Float[Tensor, "B J H X E"], Float[Tensor, "B J H X E"]]:
        """The keys and values of the slots that the steps of each block may see."""
        pairs = rearrange(
            self.keys_values(slots.vectors.flatten(1, 2)),
            "two b h (v l) e -> two b v h l e",
            l=slots.vectors.shape[2],
        )
        if slots.visible is not None:
            before, after, empty = pairs[:, :, :-2], pairs[:, :, 1:-1], pairs[:, :, -1:]
            pairs = torch.cat([before, after, empty.expand_as(before)], dim=4)
        keys, values = pairs
        return keys, values

    def _diagnostics(self, weights: list[Tensor], num_steps: int) -> Diagnostics:
        """Weights per step and head: persistent pairs, slots, and window by distance M .. 0."""
        names = ["persistent", "window"] if len(weights) == 2 else ["persistent", "slots", "window"]
        weights = [*weights[:-1], unskew(weights[-1])]
        return {
            f"attention/{name}": rearrange(weight, "b j h c n -> b (j c) h n")[:, :num_steps]
            for name, weight in zip(names, weights, strict=True)
        }

    def _blocks(
        self, keys_values: Float[Tensor, "two B H K E"], block: int
    ) -> tuple[Float[Tensor, "B J H MC E"], Float[Tensor, "B J H MC E"]]:
        """The M + C keys and values of each block of C queries.

        Concatenated from pieces of C steps, all but one of which neighbouring blocks share. So the
        backward pass adds gradients once per piece, not once per overlapping view.
        """
        size = self.window_length + block
        num_steps = keys_values.shape[3] - self.window_length
        keys_values = rearrange(keys_values, "two b h k e -> two b k h e")
        pieces = []
        for offset in range(0, size, block):
            piece = keys_values[:, :, offset : offset + num_steps]
            missing = num_steps - piece.shape[2]
            if missing:  # The last piece of the last block is cut below.
                piece = nn.functional.pad(piece, (0, 0, 0, 0, 0, missing))
            piece = rearrange(piece, "two b (j c) h e -> two b j h c e", c=block)
            pieces.append(piece[..., : size - offset, :])
        keys, values = torch.cat(pieces, dim=-2)
        return keys, values

    def _attention_bias(self, age: Int[Tensor, "B T"], block: int, dtype: torch.dtype) -> Tensor:
        """[B, J, 1, C, M + 1]: -inf where the query does not see the key M .. 0 steps back."""
        distance = torch.arange(self.window_length, -1, -1, device=age.device)
        age = rearrange(age, "b (j c) -> b j 1 c 1", c=block)
        return torch.where(distance <= age, 0.0, -torch.inf).to(dtype)


def _widened(part: Tensor, query: Tensor) -> Tensor:
    """`part` cast to the query's type if that is wider; integer positions stay integers."""
    if not part.is_floating_point():
        return part
    return part.to(torch.promote_types(part.dtype, query.dtype))


def _softmax(parts: list[Tensor]) -> list[Tensor]:
    """The softmax over the last axes of all parts together, in parts."""
    if not torch.compiler.is_compiling():
        whole = torch.cat(parts, dim=-1).softmax(dim=-1)
        return list(whole.split([part.shape[-1] for part in parts], dim=-1))
    # torch 2.11 to 2.15 miscompile a backward pass that keeps a softmax and views of its parts.
    # Compiled, this is as fast; eager, as an exported torso may run, it is slower by a tenth.
    parts = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    peaks = [part.detach().amax(dim=-1, keepdim=True) for part in parts if part.shape[-1]]
    peak = torch.cat(peaks, dim=-1).amax(dim=-1, keepdim=True)
    exponentials = [(part - peak).exp() for part in parts]
    total = torch.cat([part.sum(dim=-1, keepdim=True) for part in exponentials], dim=-1)
    total = total.sum(dim=-1, keepdim=True)
    return [part / total for part in exponentials]


def _by_head(
    rows: Float[Tensor, "*batch H C X"], matrix: Float[Tensor, "H X Y"]
) -> Float[Tensor, "*batch H C Y"]:
    """`rows @ matrix` by one product per head, which copies no matrix along the batch."""
    batch, size = rows.shape[:-3], rows.shape[-2]
    by_head = rearrange(rows.flatten(0, -4) if len(batch) > 1 else rows, "b h c x -> h (b c) x")
    out = rearrange(by_head @ matrix, "h (b c) y -> b h c y", c=size)
    return out.unflatten(0, batch) if len(batch) > 1 else out
