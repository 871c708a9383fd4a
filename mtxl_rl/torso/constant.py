"""Numbers that a module computes once and does not learn."""

from collections.abc import Callable

from torch import Tensor, nn


class Constant(nn.Module):
    """What `compute` gives, on the device and in the type of the weights beside it.

    As a plain buffer it would keep the rounding of every type that it went through, as in
    `torso.bfloat16().float()`; so it is computed again whenever it is cast or moved. It is in no
    state_dict.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("numbers", compute(), persistent=False)
        self.numbers: Tensor

    def forward(self) -> Tensor:
        """The numbers."""
        return self.numbers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constant":
        # What torch calls for every `to`, `bfloat16`, `cuda` and `to_empty` of a module around.
        before = self.numbers
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.numbers is not before:
            self.numbers = self.compute().to(self.numbers)
        return self
