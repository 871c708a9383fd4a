"""Attention over a sliding window, persistent pairs and the slots of a long-term memory."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.positions import build_positions, unskew
from mtxl_rl.torso.record import Record

# B rows, T steps given, M window, K = M + T keys, C steps of a block, J blocks, H heads,
# E head width, P persistent pairs, L slots to choose from, R = M + 1 places of the acting ring.


class Pairs(NamedTuple):
    """Keys and values without a position, per block of steps, and which of them each step sees."""

    keys: Float[Tensor, "B J H L E"]
    values: Float[Tensor, "B J H L E"]
    visible: Bool[Tensor, "B J C L"]


class WindowAttention(nn.Module):
    """Multi-head attention of every step to itself and its M predecessors.

    The P persistent pairs (Sukhbaatar et al. 2019, arXiv 1907.01470) and the slots of a long-term
    memory join the same softmax; they have no position.

    With `has_guests` the output map also reads D features that come from elsewhere: the heads of a
    long-term memory, beside those of the attention.

    Both `forward` and `step` compute the same function; `forward` works in blocks of at most
    `block_length` <= M queries, so the cost per step does not depend on T.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        window_length: int,
        num_persistent: int,
        position: str,
        block_length: int,
        one_kv_head: bool = False,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        has_guests: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_length = window_length
        self.block_length = block_length
        head_width = width // num_heads
        self.scale = head_width**-0.5
        self.query = nn.Linear(width, width, bias=False)
        self.num_kv_heads = 1 if one_kv_head else num_heads
        self.key_value = nn.Linear(width, 2 * self.num_kv_heads * head_width, bias=False)
        self.position = build_positions(
            position, width, num_heads=num_heads, window_length=window_length
        )
        self.output = nn.Linear(width * (1 + has_guests), width, bias=False)
        if has_guests:  # Each half starts as a map of its own would.
            nn.init.uniform_(self.output.weight, -(width**-0.5), width**-0.5)
        shape = (2, num_heads, num_persistent, head_width)
        self.persistent = nn.Parameter(torch.randn(shape) * self.scale)
        self.dropout = nn.Dropout(dropout)
        self.output_dropout = nn.Dropout(output_dropout)

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
        pairs: Pairs | None = None,
        guests: Float[Tensor, "B T D"] | None = None,
        record: Record | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend from the last T of the K = M + T normalised layer inputs.

        Args:
            inputs: the window's steps, then the steps given.
            age: how many predecessors each given step may see, 0 .. M.
            pairs: what else the steps see, in blocks of min(T, `block_length`) steps.
            guests: what else the output map reads.
            record: where to note the weights.
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
        query, logits = self.position.block(query, keys, self._hidden(age, block, query.dtype))
        out, weights = self._attend(query, logits, values, pairs)
        if record is not None:
            self._note(record, weights, num_steps)
        out = rearrange(out, "b j h c e -> b (j c) (h e)")[:, :num_steps]
        return self._output(out, guests)

    def step(
        self,
        query: Float[Tensor, "B D"],
        keys: Float[Tensor, "B H R E"],
        values: Float[Tensor, "B H R E"],
        codes: Tensor,
        order: Int[Tensor, " R"],
        visible: Bool[Tensor, "B R"],
        pairs: Pairs | None = None,
        guests: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Attend from one normalised layer input; keys and `visible` lie in ring order.

        Args:
            query: the layer input.
            keys: those of the ring, this step's included; widened where narrower than the query.
            values: likewise.
            codes: of the distances M .. 0; likewise.
            order: which code belongs to each place of the ring.
            visible: what each row sees.
            pairs: what else the step sees.
            guests: what else the output map reads.
        """
        q = rearrange(self.query(query) * self.scale, "b (h e) -> b h 1 e", h=self.num_heads)
        keys, values, codes = (_widened(part, q) for part in (keys, values, codes))
        q, logits = self.position.step(q, keys, codes, order)
        logits = logits.masked_fill(~visible[:, None, None], -torch.inf)
        if pairs is not None:  # one block of one step
            q, logits, values = q[:, None], logits[:, None], values[:, None]
        out, _ = self._attend(q, logits, values, pairs)
        return self._output(out.flatten(1), guests)

    def of_guests(self, guests: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """What the output map adds for them."""
        weight = self.output.weight[:, -guests.shape[-1] :]
        return nn.functional.linear(guests.to(weight.dtype), weight)

    def _output(self, out: Tensor, guests: Tensor | None) -> Tensor:
        if guests is not None:
            out = torch.cat([out, guests.to(out.dtype)], dim=-1)
        mapped: Tensor = self.output_dropout(self.output(out))
        return mapped

    def _attend(
        self, query: Tensor, logits: Tensor, values: Tensor, pairs: Pairs | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The softmax over persistent pairs, slots and window, applied to the values of each."""
        persistent_keys, persistent_values = self.persistent
        parts = [_by_head(query, persistent_keys.mT)]
        contents = [persistent_values.to(values.dtype)]
        if pairs is not None:
            slots = query @ pairs.keys.mT
            parts.append(slots.masked_fill(~pairs.visible[:, :, None], -torch.inf))
            contents.append(pairs.values)
        parts.append(logits)
        contents.append(values)
        weights = [self.dropout(part).to(values.dtype) for part in _softmax(parts)]
        out = _by_head(weights[0], contents[0])
        for weight, content in zip(weights[1:], contents[1:], strict=True):
            out = out + weight @ content
        return out, weights

    def _note(self, record: Record, weights: list[Tensor], num_steps: int) -> None:
        """Weights per step and head: persistent pairs, slots, and window by distance M .. 0."""
        names = ["attention/persistent", "attention/slots", "attention/window"]
        weights = [*weights[:-1], unskew(weights[-1])]
        for name, weight in zip([names[0], *names[-len(weights) + 1 :]], weights, strict=True):
            record[name] = rearrange(weight, "b j h c n -> b (j c) h n")[:, :num_steps].detach()

    def _blocks(
        self, keys_values: Float[Tensor, "two B H K E"], block: int
    ) -> tuple[Float[Tensor, "B J H MC E"], Float[Tensor, "B J H MC E"]]:
        """The M + C keys and values of each block of C queries.

        Joined from pieces of C steps, of which neighbouring blocks share all but one: gradients
        come back in as many additions, where those of overlapping views come one by one.
        """
        size = self.window_length + block
        num_steps = keys_values.shape[3] - self.window_length
        keys_values = rearrange(keys_values, "two b h k e -> two b k h e")
        pieces = []
        for offset in range(0, size, block):
            piece = keys_values[:, :, offset : offset + num_steps]
            missing = num_steps - piece.shape[2]
            if missing:  # of the last block's last piece, which is cut below
                piece = nn.functional.pad(piece, (0, 0, 0, 0, 0, missing))
            piece = rearrange(piece, "two b (j c) h e -> two b j h c e", c=block)
            pieces.append(piece[..., : size - offset, :])
        keys, values = torch.cat(pieces, dim=-2)
        return keys, values

    def _hidden(self, age: Int[Tensor, "B T"], block: int, dtype: torch.dtype) -> Tensor:
        """[B, J, 1, C, M + 1]: -inf where the query does not see as far as M .. 0 steps back."""
        distance = torch.arange(self.window_length, -1, -1, device=age.device)
        age = rearrange(age, "b (j c) -> b j 1 c 1", c=block)
        return torch.where(distance <= age, 0.0, -torch.inf).to(dtype)


def _widened(part: Tensor, query: Tensor) -> Tensor:
    """`part` as wide as the query, if it is narrower; places stay integers."""
    if not part.is_floating_point():
        return part
    return part.to(torch.promote_types(part.dtype, query.dtype))


def _softmax(parts: list[Tensor]) -> list[Tensor]:
    """The softmax over the last axes of all parts together, in parts."""
    if not torch.compiler.is_compiling():
        whole = torch.cat(parts, dim=-1).softmax(dim=-1)
        return list(whole.split([part.shape[-1] for part in parts], dim=-1))
    # torch 2.11 to 2.15 compile wrongly a backward pass that keeps a softmax and views of parts.
    # It makes this as fast; run as it is, as an exported torso may be, it is slower by a tenth.
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
    """`rows @ matrix` without a copy of the matrix for each of the batch: one product per head."""
    batch, size = rows.shape[:-3], rows.shape[-2]
    by_head = rearrange(rows.flatten(0, -4) if len(batch) > 1 else rows, "b h c x -> h (b c) x")
    out = rearrange(by_head @ matrix, "h (b c) y -> b h c y", c=size)
    return out.unflatten(0, batch) if len(batch) > 1 else out
