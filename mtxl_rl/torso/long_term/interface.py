"""What a layer needs from a long-term memory: two ways to keep one, one way to write it.

A kind is a module with parameters only; the memory itself is a tensor of the caller's, and a memory
of zeros is an empty one. It is written once per segment and read at every step, and the two are
apart: a step reads the memory as it stood at the last segment boundary, however many steps one call
holds.

`encode` does everything of a write that does not depend on the memory, for all segments at once;
`write` is the short recurrence that is left.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from mtxl_rl.torso.record import Record

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, D width,
# H heads, F features of a key, E features of a value, L slots.


@runtime_checkable
class MatrixMemory(Protocol):
    """A matrix per head that returns a value for a query.

    `write_step` is the same write step by step, for acting: S of them from the memory at a
    segment's start give `write` of the whole segment.
    """

    memory_shape: tuple[int, ...]
    """The shape of one row's memory in one layer."""

    def encode(
        self, segments: Float[Tensor, "B J S D"], live: Bool[Tensor, "B J S"] | None = None
    ) -> tuple[Tensor, ...]:
        """What the segments will write, tensors [B, J, ...]; only the steps marked `live` count."""
        ...

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """The memory [B, ...] after one segment, `encoded` being [B, ...] of that segment."""
        ...

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Change the memory, in place, by one more step of the segment."""
        ...

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        memories: Float[Tensor, "B J V *memory"],
        selected: Bool[Tensor, "B J C V"],
    ) -> Float[Tensor, "B J C D"]:
        """What each step reads from the version selected for it; none selected reads emptiness.

        Through an output map of its own, if it was built with `has_output`; else head by head.
        """
        ...

    def describe(self, steps: Float[Tensor, "B T D"]) -> Record:
        """Strength and retention of each step's write, [B, T, H]."""
        ...


@runtime_checkable
class SlotStore(Protocol):
    """L vectors that the layer's attention reads as keys and values without a position.

    A segment is written at once, when it is complete.
    """

    memory_shape: tuple[int, ...]
    """(L, D)."""

    def slots(self, memory: Float[Tensor, "*batch L D"]) -> Float[Tensor, "*batch L D"]:
        """The vectors that a memory holds; those of an empty one are learned, or zero."""
        ...

    def encode(self, *sources: Float[Tensor, "B J S D"]) -> tuple[Tensor, ...]:
        """What the segments will write, tensors [B, J, ...]; a source is one layer's inputs."""
        ...

    def write(
        self, memory: Float[Tensor, "B L D"], encoded: tuple[Tensor, ...]
    ) -> Float[Tensor, "B L D"]:
        """The memory after one segment, `encoded` being [B, ...] of that segment."""
        ...

    def describe(self, versions: Float[Tensor, "B V L D"], encoded: tuple[Tensor, ...]) -> Record:
        """How far each of the J = V - 1 writes moved each slot, [B, J, L]."""
        ...


def read_matrix(
    query: Float[Tensor, "B J H C F"],
    memories: Float[Tensor, "B J V H F E"],
    selected: Bool[Tensor, "B J C V"],
) -> Float[Tensor, "B J H C E"]:
    """W^T q with each step's selected version of W, zero where none is selected.

    A version that a step does not read meets a query of zeros.
    """
    versions = zip(memories.unbind(2), selected.unbind(3), strict=True)
    found = [(query * reads[:, :, None, :, None]) @ memory for memory, reads in versions]
    total = found[0]
    for part in found[1:]:
        total = total + part
    return total
