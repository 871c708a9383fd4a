"""The interface of long-term memories.

A kind of memory is a module that holds parameters only. The memory itself is a tensor that the
caller keeps, [B, *memory_shape], and a memory of zeros is an empty one. It is written once per
segment and read at every step: a step reads the memory as it stood at the last segment boundary,
however many steps one call holds.

A sequence is processed in J blocks of C <= S steps, in each of which at most one segment ends. The
write of block j makes version j + 1; version 0 is the memory that the call was given.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtxl_rl.torso.diagnostics import Diagnostics

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, K versions
# among which a step of a block chooses, D width, H heads, F features of a key, E features of a
# value, L slots.


class Slots(NamedTuple):
    """Vectors that the attention reads as keys and values without a position."""

    vectors: Float[Tensor, "B V L D"]
    """Vectors of J + 1 versions and, last, of an empty memory; or of one version that all read."""
    visible: Bool[Tensor, "B J C K"] | None
    """Whether each step sees version j, version j + 1 and the empty memory; None: it sees all."""


@runtime_checkable
class LongTermMemory(Protocol):
    """A long-term memory of one layer, or one that several layers share."""

    memory_shape: tuple[int, ...]
    """The shape of one row's memory."""
    writes_whole_segments: bool
    """Whether `write` needs a whole segment, so that acting does not call `write_step`."""

    def encode(
        self, segments: Float[Tensor, "B J S D"], valid: Bool[Tensor, "B J S"] | None = None
    ) -> tuple[Tensor, ...]:
        """The part of a write that does not depend on the memory, for all segments in parallel.

        Args:
            segments: normalised layer inputs.
            valid: the steps to write, for `write_step` memories; None: all.

        Returns:
            Tensors [B, J, ...] for `write`.
        """
        ...

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """The memory after one segment; `encoded` holds that segment's tensors, [B, ...]."""
        ...

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Update the memory in place by one step.

        S calls from a segment's start equal `write` of the whole segment.
        """
        ...

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        versions: Float[Tensor, "B V *memory"],
        reads: Bool[Tensor, "B J C two"] | None,
    ) -> Float[Tensor, "B J C D"] | Slots:
        """The readout of each step: features, or vectors for the attention.

        Args:
            steps: normalised layer inputs.
            versions: all J + 1 versions; or a single one.
            reads: whether each step of block j reads version j, and version j + 1; a step that
                reads neither reads an empty memory. None: all read the single version.
        """
        ...

    def diagnostics(
        self,
        steps: Float[Tensor, "B T D"],
        versions: Float[Tensor, "B V *memory"],
        encoded: tuple[Tensor, ...],
    ) -> Diagnostics:
        """Diagnostics of the writes, for `inspect`: "memory/..." per step or per segment."""
        ...


def read_matrix(
    query: Float[Tensor, "B J H C F"],
    versions: Float[Tensor, "B V H F E"],
    reads: Bool[Tensor, "B J C two"] | None,
) -> Float[Tensor, "B J H C E"]:
    """W^T q with the version of W that each step reads; zero for a step that reads none.

    A version that a step does not read is multiplied by a query of zeros.
    """
    if reads is None:
        return query @ versions
    before, after = reads[:, :, None, :, :, None].unbind(4)
    return (query * before) @ versions[:, :-1] + (query * after) @ versions[:, 1:]


def read_slots(
    vectors: Float[Tensor, "B V L D"],
    empty: Float[Tensor, "B 1 L D"],
    reads: Bool[Tensor, "B J C two"] | None,
) -> Slots:
    """The slots' vectors with the version that each step reads."""
    if reads is None:
        return Slots(vectors, None)
    visible = torch.cat([reads, ~reads.any(-1, keepdim=True)], dim=-1)
    return Slots(torch.cat([vectors, empty], dim=1), visible)
