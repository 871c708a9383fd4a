"""Constant tensors of a module."""

from collections.abc import Callable

from torch import Tensor, nn


class Constant(nn.Module):
    """The result of `compute`, on the device and in the type of the module's weights.

    A plain buffer would keep the rounding of every type that it was cast to, as in
    `torso.bfloat16().float()`. So it is recomputed whenever it is cast or moved, and is not part of
    the state_dict.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("tensor", compute(), persistent=False)
        self.tensor: Tensor

    def forward(self) -> Tensor:
        """The tensor."""
        return self.tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constant":
        # torch calls this for every `to`, `bfloat16`, `cuda` and `to_empty` of a parent module.
        before = self.tensor
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.tensor is not before:
            self.tensor = self.compute().to(self.tensor)
        return self
