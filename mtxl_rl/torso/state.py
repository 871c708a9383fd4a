"""The memory of a batch of episodes, as a value. All zeros means "an episode starts here"."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# B rows (environments), N layers, M window length, D width, A long-term memories: one per layer
# that has one, or one that all share.


class MemoryState(NamedTuple):
    """What a torso remembers between two calls; passed in and returned, never kept on a module.

    Frameworks reset a row by zeroing it. So a zeroed row is exactly a row whose next step starts
    an episode: an empty window, an untouched long-term memory, the first step of a segment.
    """

    window: Float[Tensor, "B N M D"]
    """Each layer's inputs at the last M steps, the newest last; zero where not valid. M is 0 in a
    torso without a window."""
    window_length: Int[Tensor, " B"]
    """How many of the window's steps, counted from the newest, belong to the episode: 0 .. M."""
    long_term: Float[Tensor, "B A *memory"]
    """The long-term memories, as they stood at the last segment boundary; in a recurrent torso
    each layer's recurrent state, as the last step left it."""
    segment_step: Int[Tensor, " B"]
    """Steps since the last segment boundary: 0 .. S - 1."""

    @property
    def batch_size(self) -> int:
        """Rows, B."""
        return self.window.shape[0]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "MemoryState":
        """The state with `function` applied to each tensor; it must keep the first axis B."""
        return MemoryState(*(function(field) for field in self))

    def rows(self, index: Tensor | slice | list[int]) -> "MemoryState":
        """The chosen rows, in the order of `index` (as in tensor indexing along B)."""
        return self.apply(lambda field: field[index])

    def detach(self) -> "MemoryState":
        """The state cut off from the graph: where truncated backpropagation stops."""
        return self.apply(Tensor.detach)

    def to(self, device: torch.device | str) -> "MemoryState":
        """The state on `device`."""
        return self.apply(lambda field: field.to(device))

    def reset(self, rows: torch.Tensor) -> "MemoryState":
        """The state with the rows marked in `rows` (bool, [B]) zeroed."""
        keep = ~rows
        return self.apply(lambda field: field * keep.view(-1, *[1] * (field.ndim - 1)))

    def to_flat(self) -> Float[Tensor, "B n"]:
        """One float32 vector per row, for frameworks that store states as flat arrays."""
        return torch.cat([field.flatten(1).float() if field.ndim > 1 else field[:, None].float()
                          for field in self], dim=1)  # fmt: skip

    def from_flat(self, flat: Float[Tensor, "B n"]) -> "MemoryState":
        """The inverse of `to_flat`; `self`, of any batch size, gives the shapes and dtypes.

        Raises:
            ValueError: `flat` has not the width of this kind of state.
        """
        sizes = [field[0].numel() for field in self]
        if flat.shape[1] != sum(sizes):
            raise ValueError(
                f"a flat state of width {flat.shape[1]} was given, but this torso's states have "
                f"width {sum(sizes)}; build the torso with the sizes that the state was saved with"
            )
        parts = flat.split(sizes, dim=1)
        return MemoryState(*(
            part.reshape(len(flat), *field.shape[1:]).to(field.dtype)
            for part, field in zip(parts, self, strict=True)
        ))  # fmt: skip


@dataclass(kw_only=True)
class ActingMemory(ABC):
    """A `MemoryState` in use by a torso's `act`, which changes it in place.

    Built by the torso's `begin`; good for as long as the weights stay the same.
    """

    long_term: Float[Tensor, "A B *memory"]
    window_length: Int[Tensor, " B"]
    segment_step: Int[Tensor, " B"]

    @abstractmethod
    def state(self) -> MemoryState:
        """The state after the steps taken: what the torso's `forward` would return."""
