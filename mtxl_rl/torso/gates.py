"""How a sub-layer's output joins the residual stream."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GRUGate(nn.Module):
    """The GRU gate of GTrXL (Parisotto et al. 2019, arXiv 1910.06764, section 3.2).

    With x the stream and y the sub-layer's output:

        r = sigmoid(W_r y + U_r x),  z = sigmoid(W_z y + U_z x - b_g),
        h = tanh(W_h y + U_h (r * x)),  gate(x, y) = (1 - z) * x + z * h.

    `bias` is b_g's start value: at 2, z is near sigmoid(-2) = 0.12 and the gate near the identity.
    """

    def __init__(self, width: int, *, bias: float) -> None:
        super().__init__()
        self.from_output = nn.Linear(width, 3 * width, bias=False)
        self.from_stream = nn.Linear(width, 2 * width, bias=False)
        self.from_reset_stream = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), float(bias)))

    def forward(
        self, x: Float[Tensor, "... D"], y: Float[Tensor, "... D"]
    ) -> Float[Tensor, "... D"]:
        """Join the sub-layer's output `y` to the stream `x`."""
        y_r, y_z, y_h = self.from_output(y).chunk(3, dim=-1)
        x_r, x_z = self.from_stream(x).chunk(2, dim=-1)
        r = torch.sigmoid(y_r + x_r)
        z = torch.sigmoid(y_z + x_z - self.bias)
        h = torch.tanh(y_h + self.from_reset_stream(r * x))
        return torch.lerp(x, h.to(x.dtype), z.to(x.dtype))
