"""What acting step by step keeps: with a window, rings of keys and values; without, a state."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtxl_rl.torso.state import ActingMemory, MemoryState
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, N layers, M window, T steps on the timeline, D width, H heads, E head width,
# R = M + 1 places of the ring, A long-term memories.


@dataclass(kw_only=True)
class WindowedMemory(ActingMemory):
    """What acting step by step keeps, changed in place by `act`.

    Keys and values are projected once per step and kept in rings of R = M + 1 places. Matrix
    memories are written into `pending` step by step, which becomes `long_term` at the boundary;
    slots are written there at once, from the segment's inputs on the timeline.
    """

    timeline: Float[Tensor, "B N M_T D"]
    """Layer inputs of the window at the beginning, then of each step: what the learner needs."""
    num_steps: int
    """Steps taken on the timeline, 0 .. its capacity T."""
    keys: tuple[Float[Tensor, "B H R E"], ...]
    """Per layer, each a tensor of its own: a compiled step would copy parts of a larger one."""
    values: tuple[Float[Tensor, "B H R E"], ...]
    codes: Tensor
    """The layers' position codes, [N, ...], by distance."""
    place: Int[Tensor, "1"]
    """The ring's place of the next step."""
    now: Int[Tensor, "1"]
    """The timeline's place of the next step, M + num_steps."""
    pending: tuple[Float[Tensor, " B *pending"], ...]
    """Per long-term memory."""

    def state(self) -> MemoryState:
        """The state after the steps taken: what `forward` would return."""
        window_length = self.window_length
        places = self.keys[0].shape[2] - 1
        window = self.timeline[:, :, self.num_steps : self.num_steps + places]
        return MemoryState(
            window=only_valid(window, valid_window(window_length, places)[:, None, :, None]),
            window_length=window_length.clone(),
            long_term=self.long_term.transpose(0, 1).clone(),
            segment_step=self.segment_step.clone(),
        )

    def go_on_as(self, other: "WindowedMemory") -> None:
        """Hold what `other` does, which has the same timeline, in the tensors that are here."""
        assert self.timeline.data_ptr() == other.timeline.data_ptr()
        self.num_steps = other.num_steps
        theirs = other.changing()
        for name, mine in self.changing().items():
            mine.copy_(theirs[name])

    def changing(self) -> dict[str, Tensor]:
        """All but the timeline; the codes change with the weights."""
        several = {"keys": self.keys, "values": self.values, "pending": self.pending}
        return {
            "place": self.place,
            "now": self.now,
            "window_length": self.window_length,
            "segment_step": self.segment_step,
            "codes": self.codes,
            "long_term": self.long_term,
            **{
                f"{name}_{n}": one for name, parts in several.items() for n, one in enumerate(parts)
            },
        }


@dataclass(kw_only=True)
class WindowlessMemory(ActingMemory):
    """What a torso without a window keeps: its recurrent state alone."""

    window: Float[Tensor, "B N 0 D"]

    def state(self) -> MemoryState:
        """The state after the steps taken."""
        return MemoryState(
            window=self.window,
            window_length=self.window_length,
            long_term=self.long_term.transpose(0, 1).clone(),
            segment_step=self.segment_step,
        )

    @classmethod
    def of(cls, state: MemoryState, config: TorsoConfig) -> "WindowlessMemory":
        """The state, ready to act from by a torso of `config`."""
        return cls(
            config=config,
            window=state.window,
            window_length=state.window_length,
            long_term=state.long_term.transpose(0, 1).clone(),
            segment_step=state.segment_step,
        )


def valid_window(window_length: Int[Tensor, " B"], size: int) -> Bool[Tensor, "B M"]:
    """Which of the window's `size` entries, the newest last, are valid."""
    distance = torch.arange(size, 0, -1, device=window_length.device)
    return distance <= window_length[:, None]


def only_valid(field: Tensor, valid: Bool[Tensor, "..."]) -> Tensor:
    """The field where it is valid, else zero; not a product, which would keep a NaN."""
    return field.masked_fill(~valid, 0)
