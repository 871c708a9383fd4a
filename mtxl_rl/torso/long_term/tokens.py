"""Memory tokens in front of the segment, carried on (Burtsev and Sapunov 2020, arXiv 2006.11527).

In the paper L tokens stand in front of a sequence: at every layer they attend to themselves and to
all of the sequence, and the sequence attends to them. A causal, recurrent agent cannot let a token
see a segment before its end. So each layer carries its own tokens: the steps of a segment see them
as they stood at its start, and at its end they are updated as tokens of the sequence, by one
attention to themselves and the segment and one feed-forward. The kinds:

- MemTransformer: the update uses the layer's own weights, as the paper's tokens do;
- MemCtrl (`separate_control`): it has weights of its own;
- MemBottleneck (`bottleneck`, in the layer's attention): a step sees itself and the tokens but no
  other step, so that what passes between steps passes through the tokens.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.torso.attention import WindowAttention
from mtxl_rl.torso.gates import Gate
from mtxl_rl.torso.record import Record

# B rows, J segments, S steps of a segment, D width, H heads, E head width, L tokens.


class Control(NamedTuple):
    """The weights that update the tokens: a layer's sub-layers, or others like them."""

    norm: nn.LayerNorm
    attention: WindowAttention
    gate: Gate
    feedforward: nn.Module | None


class TokenMemory(nn.Module):
    """L learned tokens; the memory is how far they have moved from where they start.

    What is carried passes a layer norm, so it is bounded whatever the gates are.
    """

    def __init__(self, width: int, *, num_tokens: int, control: Control, is_shared: bool) -> None:
        super().__init__()
        self.memory_shape: tuple[int, ...] = (num_tokens, width)
        self.start = nn.Parameter(torch.randn(num_tokens, width))
        self.norm = nn.LayerNorm(width)
        # A tuple is not registered: weights that are the layer's stay the layer's.
        self.control = control
        parts = [part for part in control if isinstance(part, nn.Module)]
        self.own_control: nn.ModuleList = nn.ModuleList([] if is_shared else parts)

    def slots(self, memory: Float[Tensor, "*batch L D"]) -> Float[Tensor, "*batch L D"]:
        """The tokens."""
        return self.start + memory.to(self.start.dtype)

    def encode(self, *sources: Float[Tensor, "B J S D"]) -> tuple[Tensor, ...]:
        """The segments' keys and values, [B, J, H, S, E]."""
        (segments,) = sources
        pairs = self.control.attention.keys_values(segments.flatten(0, 1))
        keys, values = pairs.unflatten(1, segments.shape[:2])
        return keys, values

    def write(
        self, memory: Float[Tensor, "B L D"], encoded: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """The tokens' move after one segment."""
        norm, attention, gate, feedforward = self.control
        tokens = self.slots(memory)
        inputs = norm(tokens)
        query = rearrange(attention.query(inputs), "b l (h e) -> b h l e", h=attention.num_heads)
        own = attention.keys_values(inputs)
        keys, values = (
            torch.cat([first, second.to(first.dtype)], dim=2)
            for first, second in zip(own, encoded, strict=True)
        )
        weights = (query @ keys.mT * attention.scale).softmax(dim=-1)
        found = rearrange(weights.to(values.dtype) @ values, "b h l e -> b l (h e)")
        tokens = gate(tokens, attention.output(found))
        if feedforward is not None:
            tokens = feedforward(tokens)
        return (self.norm(tokens) - self.start).to(memory.dtype)

    def describe(self, versions: Float[Tensor, "B V L D"], encoded: tuple[Tensor, ...]) -> Record:
        """How far each write moved each token, [B, J, L]."""
        del encoded
        return {"memory/moved": (versions[:, 1:] - versions[:, :-1]).norm(dim=-1)}
