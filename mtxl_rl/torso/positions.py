"""How the attention knows how far back a key lies.

Each kind computes the same logits in two ways: `block` for C queries against the M + C keys of a
block, and `step` for one query against the ring of an acting memory, whose places lie in any
rotation. `codes`, a tensor [_, M + 1, _], is what `step` needs of the distances, farthest first;
`order` says which of them belongs to each place.
"""

import math
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.constant import Constant

# M window, C queries of a block, K = M + C keys, R = M + 1 places of the ring, H heads, E head
# width.

POSITIONS = ("sinusoidal", "learned", "rotary", "none")


@runtime_checkable
class Positions(Protocol):
    """Logits of queries, scaled by 1 / sqrt(E), for keys by content and distance.

    Both return the queries that meet keys without a position, too.
    """

    def codes(self) -> Tensor:
        """What is known of each distance M .. 0."""
        ...

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        hidden: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart.

        `hidden` is added by distance, M .. 0: 0 where the query sees the key, else -inf; keys that
        are farther or later are hidden, too.
        """
        ...

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        codes: Tensor,
        order: Int[Tensor, " R"],
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key at place j has the code `order[j]`."""
        ...


def sinusoids(num_positions: int, width: int) -> Float[Tensor, "positions width"]:
    """The position code of each distance 0 .. num_positions - 1 (Dai et al. 2019, section 3.3)."""
    full = torch.promote_types(torch.get_default_dtype(), torch.float32)
    frequency = torch.exp(torch.arange(0, width, 2).to(full) * (-math.log(10_000.0) / width))
    angle = torch.arange(num_positions)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def _farthest_first(window_length: int, width: int) -> Float[Tensor, "M1 D"]:
    """The position codes of the distances M .. 0, as keys lie."""
    return sinusoids(window_length + 1, width).flip(0)


def skew(scores: Float[Tensor, "*batch C M1"], *, fill: float = 0.0) -> Float[Tensor, "*batch C K"]:
    """Move row i of `scores` i places to the right: out[i, i + m] = scores[i, m], `fill` elsewhere.

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
    """`query @ keys^T` plus a term by distance; -inf outside of the window."""
    bias = skew(by_distance, fill=-torch.inf).expand(*query.shape[:-1], -1)
    logits = torch.baddbmm(bias.flatten(0, -3), query.flatten(0, -3), keys.flatten(0, -3).mT)
    return logits.view_as(bias)


class RelativePositions(nn.Module):
    """Transformer-XL's relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3).

    The logit of query i for key j is (q_i + u) . k_j + (q_i + v) . p_{i-j}, where p_d is W_r r_d
    with r_d the sinusoids of the distance, or (`learned`) a vector of its own.
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
            self.sinusoid = Constant(partial(_farthest_first, window_length, width))
        self.content_bias = nn.Parameter(torch.zeros(num_heads, head_width))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, head_width))

    def codes(self) -> Float[Tensor, "H R E"]:
        """The vectors p of the distances M .. 0."""
        if self.table is not None:
            return self.table
        return rearrange(self.projection(self.sinusoid()), "m (h e) -> h m e", h=self.num_heads)

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        hidden: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart."""
        positional = self._biased(query, self.position_bias) @ self.codes().mT
        query = self._biased(query, self.content_bias)
        return query, _band(query, keys, positional + hidden)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        codes: Float[Tensor, "H R E"],
        order: Int[Tensor, " R"],
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key at place j has the code `order[j]`."""
        # By head and not by row: all rows share the codes, which a broadcast would copy for each.
        positional = self._biased(query, self.position_bias).squeeze(2).transpose(0, 1) @ codes.mT
        query = self._biased(query, self.content_bias)
        # Not index_select, which takes eight times as long along a last axis.
        positional = positional.gather(2, order.expand_as(positional)).transpose(0, 1)
        return query, query @ keys.mT + positional[:, :, None]

    def _biased(
        self, query: Float[Tensor, "*batch H C E"], bias: Float[Tensor, "H E"]
    ) -> Float[Tensor, "*batch H C E"]:
        """Transformer-XL's q + u or q + v, scaled; the queries come scaled."""
        return query + bias[:, None] * query.shape[-1] ** -0.5


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): keys and queries turn with the step.

    Angles count from the oldest key of a block or ring, so they stay small however long an episode.
    """

    def __init__(self, *, window_length: int) -> None:
        super().__init__()
        self.window_length = window_length
        self.places = Constant(partial(torch.arange, 2 * window_length + 1))

    def codes(self) -> Int[Tensor, "1 R 1"]:
        """The places 0 .. M, which are the distances M .. 0."""
        return self.places()[None, : self.window_length + 1, None]

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        hidden: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Query i of the block and key j lie i + M - j steps apart."""
        num_keys = keys.shape[-2]
        turned = turn(query, self.places()[self.window_length : num_keys])
        return query, _band(turned, turn(keys, self.places()[:num_keys]), hidden)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        codes: Tensor,
        order: Int[Tensor, " R"],
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """The key at place j has the code `order[j]`."""
        turned = turn(query, self.places()[self.window_length, None])
        return query, turned @ turn(keys, codes[0, :, 0][order]).mT


def turn(x: Float[Tensor, "*batch K E"], places: Int[Tensor, " K"]) -> Float[Tensor, "*batch K E"]:
    """`x` with features f and E / 2 + f turned by the place's angle, place x 10000^(-2 f / E)."""
    full = torch.promote_types(x.dtype, torch.float32)
    exponent = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=full) / x.shape[-1]
    angle = places[:, None] * torch.exp(exponent * -math.log(10_000.0))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class NoPositions(nn.Module):
    """Keys are told apart by content alone."""

    def __init__(self, *, window_length: int) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(0, window_length + 1, 0), persistent=False)
        self.nothing: Tensor

    def codes(self) -> Tensor:
        """Nothing is known of a distance."""
        return self.nothing

    def block(
        self,
        query: Float[Tensor, "*batch H C E"],
        keys: Float[Tensor, "*batch H K E"],
        hidden: Float[Tensor, "*batch 1 C M1"],
    ) -> tuple[Float[Tensor, "*batch H C E"], Float[Tensor, "*batch H C K"]]:
        """Logits by content."""
        return query, _band(query, keys, hidden)

    def step(
        self,
        query: Float[Tensor, "B H 1 E"],
        keys: Float[Tensor, "B H R E"],
        codes: Tensor,  # noqa: ARG002
        order: Int[Tensor, " R"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B H 1 E"], Float[Tensor, "B H 1 R"]]:
        """Logits by content."""
        return query, query @ keys.mT


def build_positions(
    kind: str, width: int, *, num_heads: int, window_length: int
) -> RelativePositions | RotaryPositions | NoPositions:
    """The positions of a name in `POSITIONS`."""
    assert kind in POSITIONS, kind
    if kind == "none":
        return NoPositions(window_length=window_length)
    if kind == "rotary":
        return RotaryPositions(window_length=window_length)
    return RelativePositions(
        width, num_heads=num_heads, window_length=window_length, learned=kind == "learned"
    )
