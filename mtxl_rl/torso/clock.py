"""The position of each step in its episode, its window and its segment, in integers."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# B rows, T steps, M window length, S segment length, J blocks of C <= S steps.


class Clock(NamedTuple):
    """Per step: what it may attend to, and which version of the long-term memory it reads.

    Segments are counted from each episode's first step, so that a segment never contains a reset
    and outputs depend on the episode alone. In a block of at most S consecutive steps at most one
    segment ends. The write of block j makes version j + 1; version 0 is the memory before the
    call. A step of block j reads version j, version j + 1, or an empty memory.

    All fields cover T + 1 steps: the last is the first step of a following call.
    """

    age: Int[Tensor, "B T1"]
    """Predecessors of the same episode inside the window: 0 .. M."""
    segment_step: Int[Tensor, "B T1"]
    """Position in the segment: 0 .. S - 1; the segment ends after a step at S - 1."""
    version: Int[Tensor, "B T1"]
    """The version of the long-term memory that the step reads, if `has_version`."""
    has_version: Bool[Tensor, "B T1"]
    """False where the episode began in this call and has completed no segment yet."""

    @classmethod
    def of(
        cls,
        is_first: Bool[Tensor, "B T"],
        window_length: Int[Tensor, " B"],
        segment_step: Int[Tensor, " B"],
        *,
        max_age: int,
        segment_length: int,
    ) -> "Clock":
        """Count from `is_first` and from the state's window and segment."""
        num_steps = is_first.shape[1]
        block = min(num_steps, segment_length)
        step = torch.arange(num_steps + 1, device=is_first.device)
        first = torch.nn.functional.pad(is_first, (0, 1))
        start = torch.where(first, step, -1).cummax(dim=1).values
        started = start >= 0
        age = torch.where(started, step - start, window_length[:, None] + step)
        in_segment = torch.where(started, step - start, segment_step[:, None] + step)
        in_segment = in_segment % segment_length
        last_end = step - in_segment - 1  # the step after which the memory was last written
        return cls(
            age=age.clamp(max=max_age),
            segment_step=in_segment,
            version=torch.where(last_end >= 0, last_end // block + 1, 0),
            has_version=~started | (step - start >= segment_length),
        )

    def reads(self, segment_length: int) -> Bool[Tensor, "B J C two"]:
        """Whether each step of block j reads version j, and version j + 1; padding reads neither.

        A block has C = min(T, S) steps.
        """
        num_steps = self.age.shape[1] - 1
        block = min(num_steps, segment_length)
        num_blocks = -(-num_steps // block)
        pad = num_blocks * block - num_steps
        candidates = torch.arange(num_blocks, device=self.age.device)[:, None, None]
        candidates = candidates + torch.arange(2, device=self.age.device)
        version, has = (
            torch.nn.functional.pad(field[:, :-1], (0, pad)).unflatten(1, (num_blocks, block))
            for field in (self.version, self.has_version)
        )
        return (version[..., None] == candidates) & has[..., None]


class SegmentEnds(NamedTuple):
    """The one segment, if any, that ends in each block of C steps."""

    first_input: Int[Tensor, "B J"]
    """The index of the segment's first step on the timeline of M + T steps."""
    continues: Bool[Tensor, "B J"]
    """False for the first segment of an episode: its memory starts from zero."""

    @classmethod
    def of(cls, clock: Clock, *, window_length: int, segment_length: int) -> "SegmentEnds":
        """Find the ends. A block without one gets legal values, and no step reads its write."""
        batch, num_steps = clock.age.shape[0], clock.age.shape[1] - 1
        block = min(num_steps, segment_length)
        num_blocks = -(-num_steps // block)
        pad = num_blocks * block - num_steps
        is_end = clock.segment_step[:, :-1] == segment_length - 1
        is_end = torch.nn.functional.pad(is_end, (0, pad)).view(batch, num_blocks, block)
        offset = is_end.to(torch.uint8).argmax(dim=2)
        begin = torch.arange(num_blocks, device=offset.device) * block
        end = (begin + offset).clamp(max=num_steps - 1)
        return cls(
            first_input=window_length + end - (segment_length - 1),
            continues=clock.has_version.gather(1, end),
        )
