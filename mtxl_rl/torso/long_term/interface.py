"""The interface of long-term memories.

A kind of memory is a module that holds parameters only. The memory itself is a tensor that the
caller keeps, [B, *memory_shape], and a memory of zeros is an empty one. It is written once per
segment and read at every step: a step reads the memory as it stood at the last segment boundary,
however many steps one call holds.

A sequence is processed in J blocks of C <= S steps, in each of which at most one segment ends. The
write of block j makes version j + 1; version 0 is the memory that the call was given.
"""

from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.attention import WindowAttention
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.gates import Gate

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, D width, H
# heads, F features of a key, E features of a value, L slots.


class Sublayers(NamedTuple):
    """The sub-layers of a layer, or others like them, which update tokens."""

    norm: nn.LayerNorm
    attention: WindowAttention
    gate: Gate
    feedforward: nn.Module | None


class LongTermMemory(nn.Module):
    """A long-term memory of one layer, or one that several layers share.

    The steps read it by `read`; or, with `reads_slots`, their attention reads its `slots`.
    """

    reads_slots: ClassVar[bool] = False
    """Whether the attention reads the memory, as keys and values without a position."""
    writes_whole_segments: ClassVar[bool] = False
    """Whether `write` needs a whole segment, so that acting does not call `write_step`."""
    decays: ClassVar[tuple[str, ...]] = ("none",)
    """The legal `torso.decay`."""

    memory_shape: tuple[int, ...]
    """The shape of one row's memory."""

    def connect(self, sublayers: Sublayers) -> None:
        """Receive the sub-layers of the layer that owns the memory, which writes may use."""

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
        raise NotImplementedError

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """The memory after one segment; `encoded` holds that segment's tensors, [B, ...]."""
        raise NotImplementedError

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Update the memory in place by one step; nothing with `writes_whole_segments`.

        S calls from a segment's start equal `write` of the whole segment.
        """

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        versions: Float[Tensor, "B V *memory"],
        reads: Bool[Tensor, "B J C two"] | None,
    ) -> Float[Tensor, "B J C D"]:
        """The readout of each step.

        Args:
            steps: normalised layer inputs.
            versions: all J + 1 versions; or a single one.
            reads: whether each step of block j reads version j, and version j + 1; a step that
                reads neither reads an empty memory. None: all read the single version.
        """
        raise NotImplementedError

    def slots(self, versions: Float[Tensor, "B V *memory"]) -> Float[Tensor, "B V L D"]:
        """The vectors of each version that the attention reads."""
        raise NotImplementedError

    def diagnostics(
        self,
        steps: Float[Tensor, "B T D"],  # noqa: ARG002
        versions: Float[Tensor, "B V *memory"],  # noqa: ARG002
        encoded: tuple[Tensor, ...],  # noqa: ARG002
    ) -> Diagnostics:
        """Diagnostics of the writes, for `inspect`: "memory/..." per step or per segment."""
        return {}

    def read_diagnostics(self, steps: Float[Tensor, "B T D"]) -> Diagnostics:  # noqa: ARG002
        """Diagnostics of the reads, likewise, from the steps that `read` receives."""
        return {}


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
