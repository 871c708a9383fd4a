"""Gates that update the residual stream with a sub-layer's output, or a slot with a write.

Both are one operation: a recurrent cell that updates a state x with an input y. With

    r = sigmoid(W_r y + U_r x),  z = sigmoid(W_z y + U_z x - b),  c = sigmoid(.. + b)

`bias` is the initial value of b: a number, one per feature, or one per slot and feature. The larger
it is, the closer a cell is to the identity at first: at 2, z is near 0.12 and c near 0.88.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.torso.torso_config import CELLS, GATES, TorsoConfig

Bias = float | Float[Tensor, "*slots D"]
Features = Float[Tensor, "... D"]


@runtime_checkable
class Gate(Protocol):
    """Updates the stream `x` with a sub-layer's output `y`."""

    def __call__(self, x: Features, y: Features) -> Features:
        """The stream after the sub-layer."""
        ...


def _bias(width: int, bias: Bias) -> nn.Parameter:
    if isinstance(bias, Tensor):
        return nn.Parameter(bias.clone())
    return nn.Parameter(torch.full((width,), float(bias)))


class GRUGate(nn.Module):
    """The GRU gate of GTrXL (Parisotto et al. 2019, arXiv 1910.06764, section 3.2).

    h = tanh(W_h y + U_h (r * x)),  gate(x, y) = (1 - z) * x + z * h.
    """

    def __init__(self, width: int, *, bias: Bias) -> None:
        super().__init__()
        self.from_output = nn.Linear(width, 3 * width, bias=False)
        self.from_stream = nn.Linear(width, 2 * width, bias=False)
        self.from_reset_stream = nn.Linear(width, width, bias=False)
        self.bias = _bias(width, bias)

    def forward(self, x: Features, y: Features) -> Features:
        """The gated sum of `x` and `y`."""
        y_r, y_z, y_h = self.from_output(y).chunk(3, dim=-1)
        narrow = self.bias.dtype  # A memory slot may be wider than the weights.
        x_r, x_z = self.from_stream(x.to(narrow)).chunk(2, dim=-1)
        r = torch.sigmoid(y_r + x_r)
        z = torch.sigmoid(y_z + x_z - self.bias)
        h = torch.tanh(y_h + self.from_reset_stream((r * x).to(narrow)))
        return torch.lerp(x, h.to(x.dtype), z.to(x.dtype))

    def retention(self, x: Features, y: Features) -> Features:
        """The fraction of `x` that the gate keeps, 1 - z."""
        y_z = self.from_output(y).chunk(3, dim=-1)[1]
        x_z = self.from_stream(x.to(self.bias.dtype)).chunk(2, dim=-1)[1]
        return torch.sigmoid(self.bias - y_z - x_z)


class BistableGate(nn.Module):
    """The bistable recurrent cells of Vecoven et al. 2020 (arXiv 2006.05252, section 3) as gates.

    a = 1 + tanh(W_a y + U_a x),  c = sigmoid(W_c y + U_c x + b),
    gate(x, y) = c * x + (1 - c) * tanh(W y + a * x).

    U_a and U_c are a weight per feature in BRC and matrices in nBRC (`neuromodulated`). The bias b
    is added here; the paper has none, so that its gates start at c = 0.5.
    """

    def __init__(self, width: int, *, bias: Bias, neuromodulated: bool) -> None:
        super().__init__()
        self.from_output = nn.Linear(width, 3 * width, bias=False)
        self.from_stream = nn.Linear(width, 2 * width, bias=False) if neuromodulated else None
        self.per_feature = None if neuromodulated else nn.Parameter(torch.zeros(2, width))
        self.bias = _bias(width, bias)

    def forward(self, x: Features, y: Features) -> Features:
        """The gated sum of `x` and `y`."""
        a, c, y_h = self._gates(x, y)
        h = torch.tanh(y_h + a * x)
        return torch.lerp(h.to(x.dtype), x, c.to(x.dtype))

    def retention(self, x: Features, y: Features) -> Features:
        """The fraction of `x` that the gate keeps, c."""
        return self._gates(x, y)[1]

    def _gates(self, x: Features, y: Features) -> tuple[Features, Features, Features]:
        y_a, y_c, y_h = self.from_output(y).chunk(3, dim=-1)
        if self.from_stream is not None:
            x_a, x_c = self.from_stream(x.to(self.bias.dtype)).chunk(2, dim=-1)
        else:
            assert self.per_feature is not None
            x_a, x_c = self.per_feature[0] * x, self.per_feature[1] * x
        return 1 + torch.tanh(y_a + x_a), torch.sigmoid(y_c + x_c + self.bias), y_h


class ResidualGate(nn.Module):
    """The plain residual connection: gate(x, y) = x + y."""

    def forward(self, x: Features, y: Features) -> Features:
        """The sum of `x` and `y`."""
        return x + y


class LinearGate(nn.Module):
    """The gates of GTrXL (arXiv 1910.06764, section 3.2) that have one or two matrices.

    | kind    | gate(x, y)                                             |
    |---------|--------------------------------------------------------|
    | input   | sigmoid(W x) * x + y  (no bias: the paper gives none)  |
    | output  | x + sigmoid(W x - b) * y                               |
    | highway | c * x + (1 - c) * y with c = sigmoid(W x + b)          |
    | sigtanh | x + sigmoid(W y - b) * tanh(U y)                       |
    """

    def __init__(self, width: int, *, kind: str, bias: Bias) -> None:
        super().__init__()
        self.kind = kind
        self.gate = nn.Linear(width, width, bias=False)
        self.transform = nn.Linear(width, width, bias=False) if kind == "sigtanh" else None
        self.bias = None if kind == "input" else _bias(width, bias)

    def forward(self, x: Features, y: Features) -> Features:
        """The gated sum of `x` and `y`."""
        if self.bias is None:
            return torch.sigmoid(self.gate(x)).to(x.dtype) * x + y
        if self.kind == "highway":
            c = torch.sigmoid(self.gate(x) + self.bias)
            return torch.lerp(y.to(x.dtype), x, c.to(x.dtype))
        if self.transform is None:
            return x + torch.sigmoid(self.gate(x) - self.bias).to(x.dtype) * y
        opening = torch.sigmoid(self.gate(y) - self.bias)
        return x + (opening * torch.tanh(self.transform(y))).to(x.dtype)


class MogrifiedGate(nn.Module):
    """A gate whose two inputs first modulate each other (Melis et al. 2020, arXiv 1909.01792).

    Rounds alternate between y <- 2 sigmoid(Q x) * y and x <- 2 sigmoid(R y) * x, with Q and R of
    rank D / 4 at most. The second factors start at zero, so that every round starts as the
    identity.
    """

    def __init__(self, width: int, gate: Gate, *, num_rounds: int) -> None:
        super().__init__()
        rank = max(1, width // 4)
        self.rounds: nn.ModuleList = nn.ModuleList()
        for _ in range(num_rounds):
            first, second = nn.Linear(width, rank, bias=False), nn.Linear(rank, width)
            nn.init.zeros_(second.weight)
            nn.init.zeros_(second.bias)
            self.rounds.append(nn.Sequential(first, second))
        self.gate = gate

    def forward(self, x: Features, y: Features) -> Features:
        """The gated sum of the modulated `x` and `y`."""
        for i, factors in enumerate(self.rounds):
            if i % 2 == 0:
                y = 2 * torch.sigmoid(factors(x)).to(y.dtype) * y
            else:
                x = 2 * torch.sigmoid(factors(y)).to(x.dtype) * x
        return self.gate(x, y)


class RectifiedGate(nn.Module):
    """A gate after a ReLU on the sub-layer's output (GTrXL, arXiv 1910.06764, eqs. 4 and 5)."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Features, y: Features) -> Features:
        """The gated sum of `x` and the positive part of `y`."""
        return self.gate(x, torch.relu(y))


def sublayer_gate(config: TorsoConfig) -> Gate:
    """The gate of a torso's sub-layers."""
    gate = build_gate(config.gate, config.width, bias=config.gate_bias)
    if config.mogrifier_rounds:
        gate = MogrifiedGate(config.width, gate, num_rounds=config.mogrifier_rounds)
    return RectifiedGate(gate) if config.sublayers.output_relu else gate


def build_gate(kind: str, width: int, *, bias: Bias) -> Gate:
    """The gate with a name in `GATES`."""
    assert kind in GATES, kind
    if kind == "residual":
        return ResidualGate()
    if kind in CELLS:
        return build_cell(kind, width, bias=bias)
    return LinearGate(width, kind=kind, bias=bias)


def build_cell(kind: str, width: int, *, bias: Bias) -> GRUGate | BistableGate:
    """The recurrent cell with a name in `CELLS`."""
    assert kind in CELLS, kind
    if kind == "gru":
        return GRUGate(width, bias=bias)
    return BistableGate(width, bias=bias, neuromodulated=kind == "nbrc")
