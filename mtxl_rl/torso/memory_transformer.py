"""The torso: a stack of gated Memory Transformer-XL layers, for whole segments and for acting."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.config import TorsoConfig
from mtxl_rl.torso.layer import Layer
from mtxl_rl.torso.state import ActingMemory, MemoryState

# B rows, T steps given, N layers, M window, S segment, D width, H heads, E head width,
# R = M + 1 places of the ring.


@dataclass(kw_only=True)
class WindowedMemory(ActingMemory):
    """What acting step by step keeps, changed in place by `act`.

    Keys and values are projected once per step and kept in rings of R = M + 1 places; the segment
    under way is written into `pending` step by step and becomes `long_term` at the boundary.
    """

    timeline: Float[Tensor, "B N M_T D"]
    """Layer inputs of the window at the beginning, then of each step: what the learner needs."""
    num_steps: int
    """Steps taken on the timeline, 0 .. its capacity T."""
    keys: Float[Tensor, "N B H R E"]
    values: Float[Tensor, "N B H R E"]
    positions: Float[Tensor, "N H R2 E"]
    """Projected position codes, twice around the ring, so that any rotation is a slice."""
    place: int
    """The ring's place of the next step."""
    pending: Float[Tensor, "A B *memory"]

    def state(self) -> MemoryState:
        """The state after the steps taken: what `forward` would return."""
        window_length = self.window_length
        places = self.keys.shape[3] - 1
        window = self.timeline[:, :, self.num_steps : self.num_steps + places]
        return MemoryState(
            window=window * valid_window(window_length, places)[:, None, :, None],
            window_length=window_length.clone(),
            long_term=self.long_term.transpose(0, 1).clone(),
            segment_step=self.segment_step.clone(),
        )


def valid_window(window_length: Int[Tensor, " B"], size: int) -> Bool[Tensor, "B M"]:
    """Which of the window's `size` entries, the newest last, are valid."""
    distance = torch.arange(size, 0, -1, device=window_length.device)
    return distance <= window_length[:, None]


class MemoryTransformer(nn.Module):
    """A gated Memory Transformer-XL that maps features [B, T, D] to features [B, T, D].

    At each step of an episode, layer n sees its own inputs at the last M steps and this one, P
    learned pairs, and its long-term memory as it stood at the end of the last segment of S steps.
    What a step gives depends on its episode alone: not on how the sequence is cut into calls, not
    on other rows, not on earlier episodes, not on the future.

    Two paths compute the same function: `forward` for sequences, which never detaches anything;
    `begin` and `act` for step-by-step acting without gradients, which project each step once.
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        self.config = config
        self.layers: nn.ModuleList = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)

    def initial_state(self, batch_size: int) -> MemoryState:
        """The state of `batch_size` episodes that are about to start: all zeros."""
        config, like = self.config, self.norm.weight
        depth, memory_shape = config.num_layers, self._layer(0).memory_shape
        zeros = like.new_zeros
        count = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        return MemoryState(
            window=zeros(batch_size, depth, config.window_length, config.width),
            window_length=count,
            long_term=zeros(batch_size, depth, *memory_shape),
            segment_step=count.clone(),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MemoryState,
        is_first: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """The outputs of T >= 1 steps and the state after them.

        Args:
            x: features of each step.
            state: what was remembered before the first of them.
            is_first: True where the step's observation starts an episode.
        """
        window_length = self.config.window_length
        clock = Clock.of(
            is_first,
            state.window_length,
            state.segment_step,
            max_age=window_length,
            segment_length=self.config.segment_length,
        )
        ends = SegmentEnds.of(
            clock, window_length=window_length, segment_length=self.config.segment_length
        )
        windows, memories = [], []
        for n in range(len(self.layers)):
            timeline = torch.cat([state.window[:, n], x], dim=1)
            x, memory = self._layer(n)(timeline, state.long_term[:, n], clock, ends)
            windows.append(timeline[:, -window_length:])
            memories.append(memory)
        valid = valid_window(clock.age[:, -1], window_length)[:, None, :, None]
        after = MemoryState(
            window=torch.stack(windows, dim=1) * valid,
            window_length=clock.age[:, -1],
            long_term=torch.stack(memories, dim=1),
            segment_step=clock.segment_step[:, -1],
        )
        return self.norm(x), after

    @torch.no_grad()
    def begin(
        self, state: MemoryState, *, num_steps: int = 128, timeline: Tensor | None = None
    ) -> WindowedMemory:
        """Prepare to act: project the window's keys and values, replay the segment under way.

        Args:
            state: where acting starts.
            num_steps: steps for which the timeline has room; `act` slides it when it is full.
            timeline: a tensor [B, N, M + num_steps, D] of the caller's to write the timeline into.
        """
        size, batch = self.config.window_length, state.batch_size
        if timeline is None:
            timeline = state.window.new_zeros(
                batch, self.config.num_layers, size + num_steps, self.config.width
            )
        timeline[:, :, :size] = state.window
        keys, values, positions, pending = [], [], [], []
        for n in range(len(self.layers)):
            layer = self._layer(n)
            inputs = layer.norm(state.window[:, n])
            # Places 1 .. M hold the steps -M .. -1; place 0 waits for the first step.
            pairs = layer.attention.keys_values(nn.functional.pad(inputs, (0, 0, 1, 0)))
            keys.append(pairs[0])
            values.append(pairs[1])
            codes = layer.attention.positions()
            positions.append(torch.cat([codes, codes], dim=1))
            pending.append(self._replay(layer, inputs, state.long_term[:, n], state.segment_step))
        return WindowedMemory(
            timeline=timeline,
            num_steps=0,
            keys=torch.stack(keys),
            values=torch.stack(values),
            positions=torch.stack(positions),
            place=0,
            long_term=state.long_term.transpose(0, 1).clone(),
            pending=torch.stack(pending),
            window_length=state.window_length.clone(),
            segment_step=state.segment_step.clone(),
        )

    @torch.no_grad()
    def act(
        self, x: Float[Tensor, "B D"], memory: ActingMemory, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The output of one step; `memory` moves on in place."""
        assert isinstance(memory, WindowedMemory), type(memory)
        self._make_room(memory)
        self._forget(memory, is_first)
        num_places = self.config.window_length + 1
        place = memory.place
        # Slot j of the ring lies (place - j) mod R steps back: a rotation of distances M .. 0.
        turn = slice(num_places - 1 - place, 2 * num_places - 1 - place)
        distance = torch.arange(num_places - 1, -1, -1, device=x.device).repeat(2)[turn]
        visible = distance <= memory.window_length[:, None]
        now = self.config.window_length + memory.num_steps
        for n in range(len(self.layers)):
            layer = self._layer(n)
            memory.timeline[:, n, now] = x
            inputs = layer.norm(x)
            pairs = layer.attention.keys_values(inputs[:, None])
            memory.keys[n, :, :, place] = pairs[0, :, :, 0]
            memory.values[n, :, :, place] = pairs[1, :, :, 0]
            attended = layer.attention.step(
                inputs, memory.keys[n], memory.values[n], memory.positions[n, :, turn], visible
            )
            x = layer.step(x, attended, memory.long_term[n])
            if layer.long_term is not None:
                memory.pending[n] = layer.long_term.write_step(memory.pending[n], inputs)
        self._count(memory)
        return self.norm(x)

    def _layer(self, n: int) -> Layer:
        layer = self.layers[n]
        assert isinstance(layer, Layer)
        return layer

    def _replay(
        self, layer: Layer, inputs: Tensor, long_term: Tensor, segment_step: Tensor
    ) -> Tensor:
        """The memory as the steps of the unfinished segment leave it."""
        if layer.long_term is None:
            return long_term.clone()
        live = valid_window(segment_step, self.config.segment_length)
        segment = inputs[:, None, -self.config.segment_length :]
        encoded = layer.long_term.encode(segment, live[:, None])
        return layer.long_term.write(long_term, tuple(part[:, 0] for part in encoded))

    def _make_room(self, memory: WindowedMemory) -> None:
        """Slide the timeline back to its beginning when it is full."""
        size = self.config.window_length
        if size + memory.num_steps < memory.timeline.shape[2]:
            return
        memory.timeline[:, :, :size] = memory.timeline[:, :, memory.num_steps :].clone()
        memory.num_steps = 0

    def _forget(self, memory: WindowedMemory, is_first: Tensor) -> None:
        """Reset the rows whose episode starts."""
        goes_on = ~is_first
        memory.window_length *= goes_on
        memory.segment_step *= goes_on
        goes_on = goes_on.view(-1, *[1] * (memory.long_term.ndim - 2))
        memory.long_term *= goes_on
        memory.pending *= goes_on

    def _count(self, memory: WindowedMemory) -> None:
        """Move the clocks on; at a segment's end the pending memory becomes the one read."""
        segment_length = self.config.segment_length
        memory.window_length.add_(1).clamp_(max=self.config.window_length)
        memory.segment_step.add_(1)
        ended = memory.segment_step == segment_length
        memory.segment_step.remainder_(segment_length)
        ended = ended.view(-1, *[1] * (memory.long_term.ndim - 2))
        torch.where(ended, memory.pending, memory.long_term, out=memory.long_term)
        memory.num_steps += 1
        memory.place = (memory.place + 1) % (self.config.window_length + 1)
