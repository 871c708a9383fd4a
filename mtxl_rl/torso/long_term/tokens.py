"""Recurrent memory tokens (Burtsev and Sapunov 2020, arXiv 2006.11527).

In the paper L tokens stand in front of a sequence: at every layer they attend to themselves and to
the whole sequence, and the sequence attends to them. In a causal, recurrent agent no token may see
a segment before its end. So each layer carries its own tokens, and the steps of a segment see them
as they stood at its start. At its end they are updated like tokens of the sequence: by one
attention to themselves and the segment, and one feed-forward sub-layer. The kinds:

- MemTransformer: the update uses the layer's own weights, as the paper's tokens do;
- MemCtrl (`separate_control`): the update has separate weights;
- MemBottleneck (`bottleneck`, in the layer's attention): a step sees itself and the tokens but no
  other step, so that all information between steps passes through the tokens.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.attention import WindowAttention
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.feedforward import FeedForward
from mtxl_rl.torso.gates import sublayer_gate
from mtxl_rl.torso.long_term.interface import LongTermMemory, Sublayers
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, J segments, S steps of a segment, D width, H heads, E head width, L tokens.


class TokenMemory(LongTermMemory):
    """L learned tokens; the memory is their displacement from their learned start.

    The carried state passes a layer norm, which bounds it for every kind of gate.
    """

    reads_slots = writes_whole_segments = True

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, num_tokens = config.width, config.tokens.num_tokens
        # A tuple is not registered, so that the layer's weights stay the layer's.
        self.control: Sublayers | None = None
        if config.tokens.separate_control:
            feedforward = None if config.all_attention else FeedForward(config)
            self.control = Sublayers(
                nn.LayerNorm(width), WindowAttention(config), sublayer_gate(config), feedforward
            )
        self.memory_shape = (num_tokens, width)
        self.start = nn.Parameter(torch.randn(num_tokens, width))
        self.norm = nn.LayerNorm(width)
        separate = [part for part in self.control or () if isinstance(part, nn.Module)]
        self.separate_control: nn.ModuleList = nn.ModuleList(separate)

    def connect(self, sublayers: Sublayers) -> None:
        """Update the tokens by the layer's sub-layers, unless they have separate ones."""
        if self.control is None:
            self.control = sublayers

    def encode(
        self,
        segments: Float[Tensor, "B J S D"],
        valid: Bool[Tensor, "B J S"] | None = None,
    ) -> tuple[Tensor, ...]:
        """The segments' keys and values, [B, J, H, S, E]."""
        assert valid is None, "tokens are written from whole segments"
        assert self.control is not None
        pairs = self.control.attention.keys_values(segments.flatten(0, 1))
        keys, values = pairs.unflatten(1, segments.shape[:2])
        return keys, values

    def write(
        self, memory: Float[Tensor, "B L D"], encoded: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """The tokens' displacement after one segment."""
        assert self.control is not None
        norm, attention, gate, feedforward = self.control
        tokens = self.slots(memory)
        inputs = norm(tokens)
        query = rearrange(attention.query(inputs), "b l (h e) -> b h l e", h=attention.num_heads)
        of_tokens = attention.keys_values(inputs)
        keys, values = (
            torch.cat([first, second.to(first.dtype)], dim=2)
            for first, second in zip(of_tokens, encoded, strict=True)
        )
        weights = (query @ keys.mT * attention.scale).softmax(dim=-1)
        attended = rearrange(weights.to(values.dtype) @ values, "b h l e -> b l (h e)")
        tokens = gate(tokens, attention.output(attended))
        if feedforward is not None:
            tokens = feedforward(tokens)
        return (self.norm(tokens) - self.start).to(memory.dtype)

    def slots(self, versions: Float[Tensor, "*batch L D"]) -> Float[Tensor, "*batch L D"]:
        """The tokens."""
        return self.start + versions.to(self.start.dtype)

    def diagnostics(
        self,
        steps: Tensor,  # noqa: ARG002
        versions: Float[Tensor, "B V L D"],
        encoded: tuple[Tensor, ...],  # noqa: ARG002
    ) -> Diagnostics:
        """Distance by which each write moved each token, [B, J, L]."""
        return {"memory/moved": (versions[:, 1:] - versions[:, :-1]).norm(dim=-1)}
