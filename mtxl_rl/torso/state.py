"""The memory of a batch of episodes, as a value; all zeros means that an episode starts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

# B rows (environments), N layers, M window length, D width, A long-term memories: one per layer
# that has one, or one that all share, O numbers of the odometry.


class MemoryState(NamedTuple):
    """A torso's memory between two calls, passed in and returned, never stored on a module.

    Frameworks reset a row by zeroing it. So a row of zeros is a row whose next step starts an
    episode: an empty window, an empty long-term memory, the first step of a segment.
    """

    window: Float[Tensor, "B N M D"]
    """Each layer's inputs at the last M steps, the newest last; zero where not valid. M is 0 for a
    torso without a window."""
    window_length: Int[Tensor, " B"]
    """Number of the window's newest steps that belong to the episode: 0 .. M."""
    long_term: Float[Tensor, "B A *memory"]
    """The long-term memories as they stood at the last segment boundary; for a recurrent torso
    each layer's recurrent state after the last step."""
    segment_step: Int[Tensor, " B"]
    """Steps since the last segment boundary: 0 .. S - 1."""
    odometry: Float[Tensor, "B O"]
    """What `torso.odometry` carries: the features of the last step and the pose after it; O is 0
    without it."""

    @property
    def batch_size(self) -> int:
        """The number of rows, B."""
        return self.window.shape[0]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "MemoryState":
        """The state with `function` applied to each tensor; it must keep the first axis B."""
        return MemoryState(*(function(field) for field in self))

    def rows(self, index: Tensor | slice | list[int]) -> "MemoryState":
        """The rows that `index` selects, as in tensor indexing along B."""
        return self.apply(lambda field: field[index])

    def detach(self) -> "MemoryState":
        """The state without its graph, where truncated backpropagation stops."""
        return self.apply(Tensor.detach)

    def to(self, device: torch.device | str) -> "MemoryState":
        """The state on `device`."""
        return self.apply(lambda field: field.to(device))

    def reset(self, rows: torch.Tensor) -> "MemoryState":
        """The state with the rows zeroed that `rows` marks ([B]; True, or any number except 0).

        Raises:
            ValueError: `rows` is not one mark per row.
        """
        if rows.shape != self.window_length.shape:
            raise ValueError(
                f"rows has the shape {list(rows.shape)}, but a state of {self.batch_size} rows "
                f"needs one mark per row, [{self.batch_size}]: True where a row is reset"
            )
        marked = rows.bool()
        # A product with zero would keep a NaN.
        return self.apply(
            lambda field: field.masked_fill(marked.view(-1, *[1] * (field.ndim - 1)), 0)
        )

    def to_flat(self) -> Float[Tensor, "B n"]:
        """One float32 vector per row, for frameworks that store states as flat arrays."""
        return torch.cat([field.flatten(1).float() if field.ndim > 1 else field[:, None].float()
                          for field in self], dim=1)  # fmt: skip

    def from_flat(self, flat: Float[Tensor, "B n"]) -> "MemoryState":
        """The inverse of `to_flat`; `self`, of any batch size, provides the shapes and dtypes.

        Raises:
            ValueError: `flat` is not [B, n] with this state's n, or neither float32 nor float64.
        """
        sizes = [field.shape[1:].numel() for field in self]
        is_flat = isinstance(flat, Tensor) and flat.ndim == 2 and flat.shape[1] == sum(sizes)
        # Narrower types would round the counts of steps.
        if not is_flat or flat.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the flat state is {describe(flat)}, but this torso's is torch.float32 or "
                f"torch.float64 [B, {sum(sizes)}]; pass what to_flat() of a torso with the same "
                "configuration returned"
            )
        parts = flat.split(sizes, dim=1)
        return MemoryState(*(
            part.reshape(len(flat), *field.shape[1:]).to(field.dtype)
            for part, field in zip(parts, self, strict=True)
        ))  # fmt: skip


def describe(value: object) -> str:
    """The type and shape of a tensor, or the type of anything else, for error messages."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


# `torch.load` reads it without weights_only=False.
torch.serialization.add_safe_globals([MemoryState])
# `torch.export.save` writes it among an exported torso's inputs and outputs.
_register_namedtuple(MemoryState, serialized_type_name="mtxl_rl.MemoryState")
