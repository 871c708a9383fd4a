"""Attention over a sliding window with relative positions and persistent key/values."""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

# B rows, T steps given, M window, K = M + T keys, C steps of a block, J blocks, H heads,
# E head width, P persistent pairs, R = M + 1 places of the acting ring.


def sinusoids(num_positions: int, width: int) -> Float[Tensor, "positions width"]:
    """The position code of each distance 0 .. num_positions - 1 (Dai et al. 2019, section 3.3)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(num_positions)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def skew(scores: Float[Tensor, "*batch C M1"]) -> Float[Tensor, "*batch C K"]:
    """Move row i of `scores` i places to the right: out[i, i + m] = scores[i, m], zero elsewhere.

    Turns scores per distance into scores per key of a block (Transformer-XL's "relative shift").
    """
    *batch, num_rows, num_distances = scores.shape
    padded = torch.nn.functional.pad(scores, (0, num_rows))
    width = num_distances + num_rows - 1
    return padded.flatten(-2)[..., : num_rows * width].reshape(*batch, num_rows, width)


class WindowAttention(nn.Module):
    """Multi-head attention of every step to itself and its M predecessors.

    The logit of query i for key j is Transformer-XL's (Dai et al. 2019, arXiv 1901.02860, eq. in
    section 3.3): ((q_i + u) . k_j + (q_i + v) . W_r r_{i-j}) / sqrt(E). The P persistent pairs
    (Sukhbaatar et al. 2019, arXiv 1907.01470) join the same softmax and have no position.

    Both `forward` and `step` compute the same function; `forward` works in blocks of at most M
    queries against M + C keys, so the cost per step does not depend on T.
    """

    def __init__(
        self, width: int, *, num_heads: int, window_length: int, num_persistent: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_length = window_length
        head_width = width // num_heads
        self.scale = head_width**-0.5
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, head_width))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, head_width))
        shape = (2, num_heads, num_persistent, head_width)
        self.persistent = nn.Parameter(torch.randn(shape) * self.scale)
        codes = sinusoids(window_length + 1, width).flip(0)  # the farthest first, as keys lie
        self.register_buffer("codes", codes, persistent=False)
        self.codes: Tensor

    def positions(self) -> Float[Tensor, "H M1 E"]:
        """The projected codes W_r r of the distances M .. 0."""
        return rearrange(self.position(self.codes), "m (h e) -> h m e", h=self.num_heads)

    def keys_values(self, inputs: Float[Tensor, "B K D"]) -> Float[Tensor, "two B H K E"]:
        """Keys and values of normalised layer inputs."""
        return rearrange(
            self.key_value(inputs), "b k (two h e) -> two b h k e", two=2, h=self.num_heads
        )

    def forward(
        self, inputs: Float[Tensor, "B K D"], age: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Attend from the last T of the K = M + T normalised layer inputs.

        Args:
            inputs: the window's steps, then the steps given.
            age: how many predecessors each given step may see, 0 .. M.
        """
        window, num_steps = self.window_length, age.shape[1]
        block = min(window, num_steps)
        pad = -num_steps % block
        query = torch.nn.functional.pad(self.query(inputs[:, window:]), (0, 0, 0, pad))
        query = rearrange(query, "b (j c) (h e) -> b j h c e", c=block, h=self.num_heads)
        pairs = torch.nn.functional.pad(self.keys_values(inputs), (0, 0, 0, pad))
        pairs = pairs.unfold(3, window + block, block)  # two b h j e k
        key, value = rearrange(pairs, "two b h j e k -> two b j h e k")
        visible = self._visible(torch.nn.functional.pad(age, (0, pad)), block)

        positional = (query + self.position_bias[:, None]) @ self.positions().mT
        query = query + self.content_bias[:, None]
        logits = (query @ key + skew(positional)) * self.scale
        logits = logits.masked_fill(~visible[:, :, None], -torch.inf)
        out = self._attend(query, logits, value.mT)
        return self.output(rearrange(out, "b j h c e -> b (j c) (h e)")[:, :num_steps])

    def step(
        self,
        query: Float[Tensor, "B D"],
        keys: Float[Tensor, "B H R E"],
        values: Float[Tensor, "B H R E"],
        positions: Float[Tensor, "H R E"],
        visible: Tensor,
    ) -> Float[Tensor, "B D"]:
        """Attend from one normalised layer input; keys, positions and `visible` in ring order."""
        q = rearrange(self.query(query), "b (h e) -> b h 1 e", h=self.num_heads)
        positional = (q + self.position_bias[:, None]) @ positions.mT
        q = q + self.content_bias[:, None]
        logits = (q @ keys.mT + positional) * self.scale
        logits = logits.masked_fill(~visible[:, None, None], -torch.inf)
        out = self._attend(q, logits, values)
        return self.output(rearrange(out, "b h 1 e -> b (h e)"))

    def _attend(self, query: Tensor, logits: Tensor, values: Tensor) -> Tensor:
        """The softmax over persistent pairs and keys, applied to their values."""
        persistent_keys, persistent_values = self.persistent
        num_persistent = persistent_keys.shape[1]
        persistent_logits = (query @ persistent_keys.mT) * self.scale
        weights = torch.cat([persistent_logits, logits], dim=-1).softmax(dim=-1)
        weights = weights.to(values.dtype)
        return (
            weights[..., :num_persistent] @ persistent_values.to(values.dtype)
            + weights[..., num_persistent:] @ values
        )

    def _visible(self, age: Int[Tensor, "B T"], block: int) -> Tensor:
        """[B, J, C, M + C] bool: key j of a block lies 0 .. age steps before query i."""
        i = torch.arange(block, device=age.device)[:, None]
        j = torch.arange(self.window_length + block, device=age.device)
        distance = i + self.window_length - j
        age = rearrange(age, "b (j c) -> b j c 1", c=block)
        return (distance >= 0) & (distance <= age)
