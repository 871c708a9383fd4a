"""The torso: a stack of gated Memory Transformer-XL layers, for whole segments and for acting."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.utils.checkpoint import checkpoint

from mtxl_rl.runtime.compile import becomes_a_graph, compiled
from mtxl_rl.torso.acting import WindowedMemory, only_valid, valid_window
from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.layer import Layer, latest_version, note, slots_of, write_versions
from mtxl_rl.torso.long_term import MatrixMemory, SlotMemory, SlotStore
from mtxl_rl.torso.record import Record
from mtxl_rl.torso.state import ActingMemory, MemoryState, StateShape
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps given, N layers, M window, S segment, D width, H heads, E head width,
# R = M + 1 places of the ring, A long-term memories.


def _may_be_any(rows: Bool[Tensor, " B"]) -> bool:
    """Whether a row may be marked: the host knows on a CPU, and on a GPU it is not worth a wait."""
    return rows.is_cuda or becomes_a_graph() or bool(rows.any())


class Inspection(NamedTuple):
    """What `MemoryTransformer.inspect` returns."""

    y: Float[Tensor, "B T D"]
    state: MemoryState
    records: list[Record]
    """Per layer: see `MemoryTransformer.inspect`."""


class MemoryTransformer(nn.Module):
    """A gated Memory Transformer-XL that maps features [B, T, D] to features [B, T, D].

    At each step of an episode, layer n sees its own inputs at the last M steps and this one, P
    learned pairs, and its long-term memory as it stood at the end of the last segment of S steps.
    What a step gives depends on its episode alone: not on how the sequence is cut into calls, not
    on other rows, not on earlier episodes, not on the future.

    Two paths compute the same function: `forward` for sequences, which never detaches anything;
    `begin` and `act` for step-by-step acting without gradients, which project each step once.
    `torch.compile(fullgraph=True)` and `torch.export` take `forward`, of one step or of many.

    Raises:
        ValueError: the configuration is a baseline's, or asks for a number of parameters, which
            `build_torso` serves.
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        if config.kind != "transformer" or config.num_parameters:
            raise ValueError(
                f"torso.kind={config.kind} and torso.num_parameters={config.num_parameters} were "
                "given, but MemoryTransformer reads neither; build the torso with "
                "mtxl_rl.build_torso(config)"
            )
        config = deepcopy(config)  # A caller may change theirs, for the next torso.
        self.config = config
        self.memory_of_layer = self._memory_of_layer(config)
        self.layers: nn.ModuleList = nn.ModuleList(
            Layer(config, has_memory=memory is not None) for memory in self.memory_of_layer
        )
        self.norm = nn.LayerNorm(config.width)
        self.shared: SlotMemory | None = None
        """The slots that layers share, if they do."""
        if config.is_shared:
            self.shared = slots_of(config, num_sources=len(config.layers_with_memory))
        self._compiled_layer: Callable[..., Any] | None = None
        self._compiled_step: Callable[..., Tensor] | None = None
        num_memories = max((m + 1 for m in self.memory_of_layer if m is not None), default=1)
        self.state_shape = StateShape(
            config=config,
            window=(config.num_layers, config.window_length, config.width),
            long_term=(num_memories, *self._memory_shape()),
        )

    def initial_state(self, batch_size: int) -> MemoryState:
        """The state of `batch_size` episodes that are about to start: all zeros."""
        return self.state_shape.zeros(batch_size, self.norm.weight)

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
            is_first: True, or any number but 0, where the step's observation starts an episode.

        A NaN of one step reaches, within the call, steps of its row that do not see it: what a
        window hides counts zero times, and zero times NaN is NaN. `act` forgets it at a reset.

        Raises:
            ValueError: a shape or a type is another than this torso's.
        """
        return self._forward(x, state, is_first, None)

    @torch.no_grad()
    def inspect(
        self, x: Float[Tensor, "B T D"], state: MemoryState, is_first: Bool[Tensor, "B T"]
    ) -> Inspection:
        """`forward`, with what happened in each layer.

        | name | shape | meaning |
        |---|---|---|
        | attention/persistent | B T H P | weight on each persistent pair |
        | attention/slots | B T H 3L | weight on each slot of the block's two versions and, last, on
          the slots of an empty memory |
        | attention/window | B T H M+1 | weight on the step at distance M .. 0 |
        | moved/attention, moved/read, moved/feedforward | B T | how far the gated sub-layer moved
          the stream, relative to its norm; a read beside the attention: how far from where the
          stream would be without it |
        | memory/strength, memory/retention | B T H | of each step's write into a matrix memory |
        | memory/moved, memory/retention | B J L | of the write into each slot at the end of a
          segment in block j of min(S, T) steps, meaningless where none ends; shared slots tell it
          in the first layer that has them |
        """
        records: list[Record] = [{} for _ in self.layers]
        y, after = self._forward(x, state, is_first, records)
        return Inspection(y, after, records)

    @torch.no_grad()
    def begin(
        self, state: MemoryState, *, num_steps: int = 128, timeline: Tensor | None = None
    ) -> WindowedMemory:
        """Prepare to act: project the window's keys and values, replay the segment under way.

        Args:
            state: where acting starts.
            num_steps: steps for which the timeline has room; `act` slides it when it is full.
            timeline: a tensor [B, N, M + num_steps, D] of the caller's to write the timeline into;
                it says what num_steps is.

        Raises:
            ValueError: the state is not of this torso, or the timeline has no room for a step, or
                another type or device than the weights.
        """
        self.state_shape.check_state(state, self.norm.weight)
        size, batch = self.config.window_length, state.batch_size
        if timeline is None:
            timeline = state.window.new_zeros(
                batch, self.config.num_layers, size + num_steps, self.config.width
            )
        self.state_shape.check_timeline(timeline, batch, self.norm.weight)
        timeline[:, :, :size] = state.window
        keys, values, codes = [], [], []
        # Of its own: acting changes it in place, and a caller's backward pass may need the state.
        pending = [torch.zeros_like(part[..., :0]) for part in state.long_term.unbind(1)]
        for n, memory in enumerate(self.memory_of_layer):
            layer = self._layer(n)
            inputs = layer.norm(state.window[:, n])
            # Places 1 .. M hold the steps -M .. -1; place 0 waits for the first step.
            pairs = layer.attention.keys_values(nn.functional.pad(inputs, (0, 0, 1, 0)))
            keys.append(pairs[0].contiguous())
            values.append(pairs[1].contiguous())
            codes.append(layer.attention.position.codes())
            if memory is not None and layer.matrix is not None:
                long_term = state.long_term[:, memory]
                pending[memory] = self._replay(layer.matrix, inputs, long_term, state.segment_step)
        return WindowedMemory(
            config=self.config,
            timeline=timeline,
            num_steps=0,
            keys=tuple(keys),
            values=tuple(values),
            codes=torch.stack(codes),
            place=torch.zeros(1, dtype=torch.long, device=timeline.device),
            now=torch.full((1,), size, device=timeline.device),
            long_term=state.long_term.transpose(0, 1).clone(memory_format=torch.contiguous_format),
            pending=tuple(pending),
            window_length=state.window_length.clone(),
            segment_step=state.segment_step.clone(),
        )

    @torch.no_grad()
    def act(
        self, x: Float[Tensor, "B D"], memory: ActingMemory, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The output of one step; `memory` moves on in place.

        Raises:
            ValueError: a shape or a type is another than this torso's, or another torso's memory.
        """
        self.state_shape.check_step(x, memory, is_first, self.norm.weight)
        step = self._compiled_step or MemoryTransformer.step
        with self.clocked(memory, is_first) as memory:
            return step(self, x, memory)

    @contextmanager
    def clocked(
        self, memory: ActingMemory, is_first: Bool[Tensor, " B"]
    ) -> Iterator[WindowedMemory]:
        """Around one `step`: what `act` leaves to the host, which may depend on the clocks."""
        assert isinstance(memory, WindowedMemory), type(memory)
        is_first = is_first.bool()  # ~ of a framework's 0 and 1 would be -1 and -2
        self._make_room(memory)
        self._forget(memory, is_first)
        yield memory
        self._count(memory)

    def clocked_step(
        self, x: Float[Tensor, "B D"], memory: WindowedMemory, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """`act` as one graph, its clocks inside, which keeps no timeline: for `mtxl_rl.export`.

        Not of slots and tokens, which are written from the timeline. That of `memory` has one
        place, and `now` points at it.
        """
        self._forget(memory, is_first)
        y = self.step(x, memory)
        self._count(memory)
        return y

    def compile_step(self) -> None:
        """Compile `act`, at its first use; each number of rows and room on the timeline for itself.

        Raises:
            ValueError: there is no C++ compiler, which a CPU needs.
        """
        # Of the class, as below: a copy of the torso then runs its own weights.
        self._compiled_step = compiled(MemoryTransformer.step, self.norm.weight.device)

    def compile_layers(self) -> None:
        """Compile what `forward` does in each layer, and its gradients, at the first use with them.

        Layers of one kind share what is compiled; each number of rows and steps is for itself.
        Without gradients, as for one step beside a rollout, the layers run as they are: compiling
        once more would cost more than it gives.

        Raises:
            ValueError: there is no C++ compiler, which a CPU needs.
        """
        layer = Layer.forward if self.shared is None else Layer.with_pairs
        self._compiled_layer = compiled(layer, self.norm.weight.device, for_learning=True)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_layers` was called."""
        return self._compiled_layer is not None

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside, `forward` runs as if `compile_layers` had not been called."""
        compiled, self._compiled_layer = self._compiled_layer, None
        try:
            yield
        finally:
            self._compiled_layer = compiled

    def step(self, x: Float[Tensor, "B D"], memory: WindowedMemory) -> Float[Tensor, "B D"]:
        """The step of `act` between its clocks: fixed shapes, in place, no question to the device.

        So it compiles as one graph that serves every step; `clocked` stands around it.
        """
        x = x.to(memory.timeline.dtype)  # as wide as `forward` has the stream under autocast
        num_places = self.config.window_length + 1
        ring = torch.arange(num_places, device=x.device)
        # Slot j of the ring lies (place - j) mod R steps back; codes lie farthest first.
        order = (ring - memory.place - 1) % num_places
        reach = memory.window_length.clamp(max=self.config.reach)
        visible = order >= self.config.window_length - reach[:, None]
        inputs_of_layers = []
        for n, index in enumerate(self.memory_of_layer):
            layer = self._layer(n)
            inputs_of_layers.append(x)
            inputs = layer.norm(x)
            pairs = layer.attention.keys_values(inputs[:, None])
            for ring, part in zip((memory.keys[n], memory.values[n]), pairs, strict=True):
                # Under autocast a ring is as wide as where `begin` was called.
                ring.index_copy_(2, memory.place, part.to(ring.dtype))
            long_term = None if index is None else memory.long_term[index]
            store = self._store(n)
            slots = None
            if store is not None and long_term is not None:
                slots = layer.pairs_of_step(store, long_term)
            guests = layer.guests_of_step(inputs, long_term)
            keys = (memory.keys[n], memory.values[n], memory.codes[n], order)
            attended = layer.attention.step(inputs, *keys, visible, slots, guests)
            x = layer.step(x, attended, long_term)
            if layer.matrix is not None and index is not None:
                layer.matrix.write_step(memory.pending[index], inputs)
        inputs_now = torch.stack(inputs_of_layers, dim=1)[:, :, None]
        memory.timeline.index_copy_(2, memory.now, inputs_now)
        return self.norm(x)

    def _forward(
        self, x: Tensor, state: MemoryState, is_first: Tensor, records: list[Record] | None
    ) -> tuple[Tensor, MemoryState]:
        self.state_shape.check_sequence(x, state, is_first, self.norm.weight)
        is_first = is_first.bool()
        if self.shared is None:
            x, state = self._sequence(x, state, is_first, records)
            return self.norm(x), state
        parts = []
        size = self.config.segment_length
        for begin in range(0, x.shape[1], size):
            block = slice(begin, begin + size)
            own: list[Record] | None = None if records is None else [{} for _ in records]
            part, state = self._shared_block(
                self.shared, x[:, block], state, is_first[:, block], own
            )
            parts.append(part)
            for record, more in zip(records or [], own or [], strict=True):
                for name, field in more.items():
                    record[name] = torch.cat([record[name], field], 1) if begin else field
        return self.norm(torch.cat(parts, dim=1)), state

    def _sequence(
        self, x: Tensor, state: MemoryState, is_first: Tensor, records: list[Record] | None
    ) -> tuple[Tensor, MemoryState]:
        """All T steps layer by layer, each layer with a memory of its own or none."""
        clock, ends = self._clock(state, is_first)
        windows = []
        memories = list(state.long_term.unbind(1))
        for n, index in enumerate(self.memory_of_layer):
            timeline = torch.cat([state.window[:, n], x], dim=1)
            before = None if index is None else memories[index]
            record = None if records is None else records[n]
            x, after = self._through(n, timeline, before, clock, ends, record)
            windows.append(timeline[:, -self.config.window_length :])
            if index is not None and after is not None:
                memories[index] = after
        return x, self._after(windows, memories, clock)

    def _shared_block(
        self,
        shared: SlotMemory,
        x: Tensor,
        state: MemoryState,
        is_first: Tensor,
        records: list[Record] | None,
    ) -> tuple[Tensor, MemoryState]:
        """At most S steps with slots that all layers read and write.

        The write needs every layer's inputs up to the segment's end, and the steps after it need
        the write. At most one segment of a row ends among the steps; so a first pass gives the
        right inputs up to that end, and a second, where any row's end is not the last step, gives
        the steps after it the memory that they read.
        """
        clock, ends = self._clock(state, is_first)
        initial = state.long_term[:, 0]
        versions = torch.stack([initial, initial], dim=1)
        y, timelines = self._pass(shared, x, state, versions, clock, records)
        encoded = shared.encode(*(
            self._layer(n).segments(timelines[n], ends) for n in self.config.layers_with_memory
        ))  # fmt: skip
        versions = write_versions(shared, encoded, initial, ends)
        if records is not None:
            note(records[self.config.layers_with_memory[0]], shared.describe(versions, encoded))
        # Where the numbers cannot be asked, as under a vmap, the second pass always runs.
        is_unknown = becomes_a_graph() or maybe_current_level() is not None
        if is_unknown or bool((clock.version[:, :-1] > 0).any()):
            y, timelines = self._pass(shared, x, state, versions, clock, records)
        windows = [timeline[:, -self.config.window_length :] for timeline in timelines]
        return y, self._after(windows, [latest_version(versions, clock)], clock)

    def _pass(
        self,
        shared: SlotMemory,
        x: Tensor,
        state: MemoryState,
        versions: Tensor,
        clock: Clock,
        records: list[Record] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and every layer's timeline, with given versions of the shared slots."""
        timelines = []
        for n, index in enumerate(self.memory_of_layer):
            layer = self._layer(n)
            timelines.append(torch.cat([state.window[:, n], x], dim=1))
            pairs = None
            if index is not None:
                pairs = layer.pairs_of_versions(shared, versions, clock)
            record = None if records is None else records[n]
            x = self._through(n, timelines[n], pairs, clock, record)
        return x, timelines

    def _through(self, n: int, *inputs: Any) -> Any:  # noqa: ANN401
        """What layer n gives; with gradient checkpointing, what is inside is not kept."""
        layer = self._layer(n)
        call: Callable[..., Any] = layer if self.shared is None else layer.with_pairs
        if not torch.is_grad_enabled():
            return call(*inputs)
        # Who compiles around the torso compiles its layers, too.
        if self._compiled_layer is not None and not torch.compiler.is_compiling():
            call = partial(self._compiled_layer, layer)
        if not self.config.gradient_checkpointing:
            return call(*inputs)
        has_dropout = self.config.sublayers.has_dropout
        return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=has_dropout)

    def _clock(self, state: MemoryState, is_first: Tensor) -> tuple[Clock, SegmentEnds]:
        sizes = self.config.window_length, self.config.segment_length
        clock = Clock.of(
            is_first,
            state.window_length,
            state.segment_step,
            max_age=sizes[0],
            segment_length=sizes[1],
        )
        return clock, SegmentEnds.of(clock, window_length=sizes[0], segment_length=sizes[1])

    def _after(self, windows: list[Tensor], memories: list[Tensor], clock: Clock) -> MemoryState:
        valid = valid_window(clock.age[:, -1], self.config.window_length)[:, None, :, None]
        return MemoryState(
            window=only_valid(torch.stack(windows, dim=1), valid),
            window_length=clock.age[:, -1],
            long_term=torch.stack(memories, dim=1),
            segment_step=clock.segment_step[:, -1],
        )

    @staticmethod
    def _memory_of_layer(config: TorsoConfig) -> list[int | None]:
        """Which of the state's long-term memories each layer has."""
        layers = config.layers_with_memory
        return [
            (0 if config.is_shared else layers.index(n)) if n in layers else None
            for n in range(config.num_layers)
        ]

    def _memory_shape(self) -> tuple[int, ...]:
        """The shape of one row of one long-term memory; (0,) without any."""
        if self.shared is not None:
            return self.shared.memory_shape
        layers = self.config.layers_with_memory
        return self._layer(layers[0]).memory_shape if layers else (0,)

    def _layer(self, n: int) -> Layer:
        layer = self.layers[n]
        assert isinstance(layer, Layer)
        return layer

    def _store(self, n: int) -> SlotStore | None:
        """The slots that layer n reads."""
        return self._layer(n).store or self.shared

    def _replay(
        self, matrix: MatrixMemory, inputs: Tensor, long_term: Tensor, segment_step: Tensor
    ) -> Tensor:
        """The memory as the steps of the unfinished segment leave it."""
        live = valid_window(segment_step, self.config.segment_length)
        segment = inputs[:, None, -self.config.segment_length :]
        encoded = matrix.encode(segment, live[:, None])
        return matrix.write(long_term, tuple(part[:, 0] for part in encoded))

    def _make_room(self, memory: WindowedMemory) -> None:
        """Slide the timeline back to its beginning when it is full."""
        size = self.config.window_length
        if size + memory.num_steps < memory.timeline.shape[2]:
            return
        memory.timeline[:, :, :size] = memory.timeline[:, :, memory.num_steps :].clone()
        memory.num_steps = 0
        memory.now.fill_(size)

    def _forget(self, memory: WindowedMemory, is_first: Tensor) -> None:
        """Reset the rows whose episode starts."""
        if not _may_be_any(is_first):
            return
        clocks = (memory.window_length, memory.segment_step)
        for part in (*clocks, *memory.long_term, *memory.pending):
            part.masked_fill_(is_first.view(-1, *[1] * (part.ndim - 1)), 0)
        if is_first.device.type != "cpu" or becomes_a_graph():
            return  # What the rings hold is masked; only a NaN would outlive that, for M steps.
        rows = is_first.nonzero()[:, 0]
        for ring in (*memory.keys, *memory.values):
            ring.index_fill_(0, rows, 0)

    def _count(self, memory: WindowedMemory) -> None:
        """Move the clocks on; at a segment's end the memory that is read is the one written."""
        memory.window_length.add_(1).clamp_(max=self.config.window_length)
        memory.segment_step.add_(1)
        ended = memory.segment_step == self.config.segment_length
        memory.segment_step.remainder_(self.config.segment_length)
        memory.num_steps += 1
        memory.now.add_(1)
        memory.place.add_(1).remainder_(self.config.window_length + 1)
        written = self._written(memory, ended)
        if written is not None:
            ended = ended.view(-1, *[1] * (memory.long_term.ndim - 2))
            for before, after in zip(memory.long_term, written, strict=True):
                torch.where(ended, after, before, out=before)

    def _written(self, memory: WindowedMemory, ended: Tensor) -> Sequence[Tensor] | None:
        """The memories after the segments that end now; None where it is known that none does.

        Slots are written only when some row's segment ends: this one question to the device costs
        less than a write at every step.
        """
        if not self.config.reads_slots:
            return memory.pending if _may_be_any(ended) else None
        if not bool(ended.any()):
            return None
        last = self.config.window_length + memory.num_steps
        segments = memory.timeline[:, :, last - self.config.segment_length : last]
        layers = self.config.layers_with_memory
        sources = [self._layer(n).norm(segments[:, n])[:, None] for n in layers]
        by_memory = [sources] if self.shared is not None else [[source] for source in sources]
        written = []
        for n, index, source in zip(layers, range(len(by_memory)), by_memory, strict=False):
            store = self._store(n)
            assert store is not None
            encoded = tuple(part[:, 0] for part in store.encode(*source))
            written.append(store.write(memory.long_term[index], encoded))
        return written
