"""The feed-forward sub-layer."""

from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.torso.gates import sublayer_gate
from mtxl_rl.torso.torso_config import TorsoConfig

# D width.


class FeedForward(nn.Module):
    """The position-wise feed-forward sub-layer: norm, two linear maps, gate.

    With `glu` the hidden units are products (Shazeer 2020, arXiv 2002.05202): f(V x) * W x.
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feedforward_multiple * config.width
        choices = config.sublayers
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden * (2 if choices.glu else 1))
        self.activation = nn.GELU() if choices.activation == "gelu" else nn.ReLU()
        self.is_glu = choices.glu
        self.dropout = nn.Dropout(choices.feedforward_dropout)
        self.contract = nn.Linear(hidden, width)
        self.gate = sublayer_gate(config)

    def forward(self, stream: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The stream after the sub-layer."""
        hidden = self.expand(self.norm(stream))
        if self.is_glu:
            gating, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation(gating) * hidden
        else:
            hidden = self.activation(hidden)
        return self.gate(stream, self.contract(self.dropout(hidden)))
