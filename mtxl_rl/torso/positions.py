"""Attention logits by content and distance.

Each kind computes the same logits in two ways. `block` is for C queries and the M + C keys of a
block. `step` is for one query and the keys of a cache, whose ring can be in any rotation. `step`
gets the `position_embeddings` [_, M + 1, _], largest distance first, and `order`, the index of each
slot's embedding.
"""

import math
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.constant import Constant
from mtxl_rl.torso.torso_config import POSITIONS

# M window, C queries of a block, K = M + C keys, R = M + 1 slots of the ring, H heads, E head
# width.


class Positions(nn.Module):
    """Logits of queries, scaled by 1 / sqrt(E), for keys by content; subclasses add the distance.

    Both methods also return the queries to use with keys that have no position.
    """

    def position_embeddings(self) -> Tensor:
        """The embeddings of the distances M .. 0."""
        raise NotImplementedError

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        attention_bias: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart.

        `attention_bias` is added by distance, M .. 0: 0 where the query sees the key, else -inf.
        Keys outside of the window get -inf.
        """
        return query, _band(query, keys, attention_bias)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        position_embeddings: Tensor,  # noqa: ARG002
        order: Int[Tensor, " R"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key in slot j has the position embedding `order[j]`."""
        return query, query @ keys.mT


def sinusoids(num_positions: int, width: int) -> Float[Tensor, "positions width"]:
    """The sinusoids of the distances 0 .. num_positions - 1 (Dai et al. 2019, section 3.3)."""
    full = torch.promote_types(torch.get_default_dtype(), torch.float32)
    frequency = torch.exp(torch.arange(0, width, 2).to(full) * (-math.log(10_000.0) / width))
    angle = torch.arange(num_positions)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def _window_sinusoids(window_length: int, width: int) -> Float[Tensor, "M1 D"]:
    """The sinusoids of the distances M .. 0, in the order of keys."""
    return sinusoids(window_length + 1, width).flip(0)


def skew(scores: Float[Tensor, "*batch C M1"], *, fill: float = 0.0) -> Float[Tensor, "*batch C K"]:
    """Shift row i of `scores` right by i: out[i, i + m] = scores[i, m], `fill` elsewhere.

    Turns scores per distance into scores per key of a block (Transformer-XL's "relative shift").
    """
    *batch, num_rows, num_distances = scores.shape
    padded = torch.nn.functional.pad(scores, (0, num_rows), value=fill)
    width = num_distances + num_rows - 1
    return padded.flatten(-2)[..., : num_rows * width].reshape(*batch, num_rows, width)


def unskew(scores: Float[Tensor, "*batch C K"]) -> Float[Tensor, "*batch C M1"]:
    """The inverse of `skew`: out[i, m] = scores[i, i + m]."""
    num_rows, width = scores.shape[-2:]
    padded = torch.nn.functional.pad(scores.flatten(-2), (0, num_rows))
    return padded.unflatten(-1, (num_rows, width + 1))[..., : width - num_rows + 1]


def _band(
    query: Float[Tensor, "*batch H C E"],
    keys: Float[Tensor, "*batch H K E"],
    by_distance: Float[Tensor, "*batch heads C M1"],
) -> Float[Tensor, "*batch H C K"]:
    """`query @ keys^T` plus a bias by distance; -inf outside of the window."""
    bias = skew(by_distance, fill=-torch.inf).expand(*query.shape[:-1], -1)
    logits = torch.baddbmm(bias.flatten(0, -3), query.flatten(0, -3), keys.flatten(0, -3).mT)
    return logits.view_as(bias)


class RelativePositions(Positions):
    """Transformer-XL's relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3).

    The logit of query i for key j is (q_i + u) . k_j + (q_i + v) . p_{i-j}. p_d is W_r r_d, where
    r_d are the sinusoids of the distance, or (`learned`) a learned vector per distance.
    """

    def __init__(self, width: int, *, num_heads: int, window_length: int, learned: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width = width // num_heads
        self.table: nn.Parameter | None = None
        if learned:
            shape = (num_heads, window_length + 1, head_width)
            self.table = nn.Parameter(torch.randn(shape) * head_width**-0.5)
        else:
            self.projection = nn.Linear(width, width, bias=False)
            self.sinusoid = Constant(partial(_window_sinusoids, window_length, width))
        self.content_bias = nn.Parameter(torch.zeros(num_heads, head_width))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, head_width))

    def position_embeddings(self) -> Float[Tensor, "H R E"]:
        """The vectors p of the distances M .. 0."""
        if self.table is not None:
            return self.table
        return rearrange(self.projection(self.sinusoid()), "m (h e) -> h m e", h=self.num_heads)

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        attention_bias: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart."""
        positional = self._biased(query, self.position_bias) @ self.position_embeddings().mT
        query = self._biased(query, self.content_bias)
        return query, _band(query, keys, positional + attention_bias)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        position_embeddings: Float[Tensor, "H R E"],
        order: Int[Tensor, " R"],
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key in slot j has the position embedding `order[j]`."""
        # One product per head: broadcasting would copy the embeddings for each row.
        by_head = self._biased(query, self.position_bias).squeeze(2).transpose(0, 1)
        positional = by_head @ position_embeddings.mT
        query = self._biased(query, self.content_bias)
        # index_select along a last axis takes eight times as long.
        positional = positional.gather(2, order.expand_as(positional)).transpose(0, 1)
        return query, query @ keys.mT + positional[:, :, None]

    def _biased(
        self, query: Float[Tensor, "*batch H C E"], bias: Float[Tensor, "H E"]
    ) -> Float[Tensor, "*batch H C E"]:
        """Transformer-XL's q + u or q + v, for scaled queries."""
        return query + bias[:, None] * query.shape[-1] ** -0.5


class RotaryPositions(Positions):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): rotations of keys and queries.

    Angles count from the oldest key of a block or ring, so that they stay small in long episodes.
    """

    def __init__(self, *, window_length: int) -> None:
        super().__init__()
        self.window_length = window_length
        self.positions = Constant(partial(torch.arange, 2 * window_length + 1))

    def position_embeddings(self) -> Int[Tensor, "1 R 1"]:
        """The positions 0 .. M, which have the distances M .. 0."""
        return self.positions()[None, : self.window_length + 1, None]

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        attention_bias: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart."""
        num_keys = keys.shape[-2]
        rotated = apply_rotary(query, self.positions()[self.window_length : num_keys])
        keys = apply_rotary(keys, self.positions()[:num_keys])
        return query, _band(rotated, keys, attention_bias)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        position_embeddings: Tensor,
        order: Int[Tensor, " R"],
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key in slot j has the position embedding `order[j]`."""
        rotated = apply_rotary(query, self.positions()[self.window_length, None])
        return query, rotated @ apply_rotary(keys, position_embeddings[0, :, 0][order]).mT


def apply_rotary(
    x: Float[Tensor, "*batch K E"], positions: Int[Tensor, " K"]
) -> Float[Tensor, "*batch K E"]:
    """Rotate features f and E / 2 + f of `x` by the angle position x 10000^(-2 f / E)."""
    full = torch.promote_types(x.dtype, torch.float32)
    exponent = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=full) / x.shape[-1]
    angle = positions[:, None] * torch.exp(exponent * -math.log(10_000.0))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class NoPositions(Positions):
    """Logits by content alone."""

    def __init__(self, *, window_length: int) -> None:
        super().__init__()
        self.register_buffer("empty", torch.zeros(0, window_length + 1, 0), persistent=False)
        self.empty: Tensor

    def position_embeddings(self) -> Tensor:
        """No embeddings."""
        return self.empty


def build_positions(kind: str, width: int, *, num_heads: int, window_length: int) -> Positions:
    """The positions with a name in `POSITIONS`."""
    assert kind in POSITIONS, kind
    if kind == "none":
        return NoPositions(window_length=window_length)
    if kind == "rotary":
        return RotaryPositions(window_length=window_length)
    return RelativePositions(
        width, num_heads=num_heads, window_length=window_length, learned=kind == "learned"
    )
