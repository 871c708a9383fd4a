"""The torso: a stack of gated Memory Transformer-XL layers, for sequences and for acting."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtxl_rl.torso.cache import Cache, DecodeCache, window_mask, zero_invalid
from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.layer import Layer, gather_segments, latest_version, write_versions
from mtxl_rl.torso.long_term import LongTermMemory, build_memory
from mtxl_rl.torso.odometry import Odometry
from mtxl_rl.torso.skipping import may_skip
from mtxl_rl.torso.state import MemoryState
from mtxl_rl.torso.state_shape import StateShape
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, N layers, M window, L steps of the timeline, S segment, D width, H heads,
# E head width, R = M + 1 slots of the ring, A long-term memories.


class Inspection(NamedTuple):
    """Output of `MemoryTransformer.inspect`."""

    y: Float[Tensor, "B T D"]
    state: MemoryState
    diagnostics: list[Diagnostics]
    """Per layer; see `MemoryTransformer.inspect`."""


class MemoryTransformer(nn.Module):
    """A gated Memory Transformer-XL that maps features [B, T, D] to features [B, T, D].

    At each step of an episode, a layer sees its inputs at the last M steps and this one, and P
    learned pairs. It also reads its long-term memory as it stood at the end of the last segment of
    S steps. The output of a step depends on its episode alone: not on how the sequence is cut into
    calls, on other rows, on earlier episodes, or on the future.

    Two paths compute the same function: `forward` for sequences, which never detaches anything,
    and `prefill` and `decode_step` for acting without gradients, which project each step once.

    Raises:
        ValueError: the configuration is a baseline's or sets `num_parameters`, both of which
            `build_torso` handles.
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        if config.kind != "transformer" or config.num_parameters:
            raise ValueError(
                f"torso.kind={config.kind} and torso.num_parameters={config.num_parameters} were "
                "given, but MemoryTransformer supports neither a baseline nor a parameter count; "
                "build the torso with mtxl_rl.build_torso(config)"
            )
        config = deepcopy(config)  # The caller may change its configuration later.
        self.config = config
        self.odometry = Odometry(config.width) if config.odometry else None
        with_memory = config.layers_with_memory
        self.layers: nn.ModuleList = nn.ModuleList(
            Layer(config, has_memory=n in with_memory) for n in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.layers_of_memory = [[n] for n in with_memory]
        """The layers of each of the state's long-term memories."""
        if config.is_shared:
            self.layers_of_memory = [list(with_memory)]
            self.shared = build_memory(config)
            for n in with_memory:
                # A plain reference: torch.func supports no module that is registered twice.
                vars(self.layers[n])["memory"] = self.shared
        self.memory_of_layer = {
            n: index for index, layers in enumerate(self.layers_of_memory) for n in layers
        }
        """Which of the state's long-term memories a layer has."""
        memories = self._memories()
        memory_shape = memories[0].memory_shape if memories else (0,)
        self.state_shape = StateShape(
            config=config,
            window=(config.num_layers, config.window_length, config.width),
            long_term=(max(1, len(memories)), *memory_shape),
            odometry=self.odometry.num_carried if self.odometry else 0,
        )

    @property
    def writes_whole_segments(self) -> bool:
        """Whether `decode_step` writes memories from whole segments (slots, tokens).

        It then computes the write at the steps where a segment ends; see `may_skip`.
        """
        return any(memory.writes_whole_segments for memory in self._memories())

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
            state: the memory before the first of them.
            is_first: True, or any number except 0, where a step's observation starts an episode.

        Within a call a NaN of one step spreads to steps of its row that do not see it: masked
        entries have weight zero, and zero times NaN is NaN. In `decode_step` it ends with its
        episode.

        Raises:
            ValueError: a shape or dtype does not match this torso.
        """
        return self._forward(x, state, is_first, None)

    def movements(
        self, x: Float[Tensor, "B T D"], state: MemoryState, is_first: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T 3"]:
        """The movements that the odometry estimates at the steps of a `forward`.

        Raises:
            ValueError: the torso has no odometry.
        """
        if self.odometry is None:
            raise ValueError("torso.odometry=false has no movements; set torso.odometry=true")
        return self.odometry.movements(x, state.odometry, _starts(state, is_first.bool()))

    @torch.no_grad()
    def inspect(
        self, x: Float[Tensor, "B T D"], state: MemoryState, is_first: Bool[Tensor, "B T"]
    ) -> Inspection:
        """`forward`, with diagnostics of each layer.

        - attention/persistent [B, T, H, P]: weight on each persistent pair.
        - attention/slots [B, T, H, 3L]: weight on each slot of the block's two versions and, last,
          on the slots of an empty memory.
        - attention/window [B, T, H, M+1]: weight on the step at distance M .. 0.
        - moved/attention, moved/read, moved/feedforward [B, T]: how far the gated sub-layer moved
          the stream, relative to its norm; for a parallel read, the distance to the stream without
          it.
        - memory/strength, memory/retention [B, T, H]: of each step's write into a matrix memory.
        - memory/key, memory/value, memory/query [B, T, H, E]: of each step's write and read of a
          delta memory.
        - memory/moved, memory/retention [B, J, L]: of the write into each slot at the end of a
          segment. Block j has min(S, T) steps; where no segment ends in it, the value is
          meaningless. Shared slots report it in the first of their layers.
        """
        diagnostics: list[Diagnostics] = [{} for _ in self.layers]
        y, after = self._forward(x, state, is_first, diagnostics)
        return Inspection(y, after, diagnostics)

    @torch.no_grad()
    def prefill(
        self, state: MemoryState, *, num_steps: int = 128, timeline: Tensor | None = None
    ) -> DecodeCache:
        """Cache for acting from `state`: project the window and replay the unfinished segment.

        Args:
            state: where acting starts; it is not changed.
            num_steps: room on the timeline, which continues at its start when it is full.
            timeline: a tensor [B, N, M + num_steps, D] to write the timeline into.

        Raises:
            ValueError: the state or the timeline does not match this torso.
        """
        self.state_shape.check_state(state, self.norm.weight)
        size, batch = self.config.window_length, state.batch_size
        if timeline is None:
            timeline = state.window.new_zeros(
                batch, self.config.num_layers, size + num_steps, self.config.width
            )
        self.state_shape.check_timeline(timeline, batch, self.norm.weight)
        timeline[:, :, :size] = state.window
        layers = [self._layer(n) for n in range(self.config.num_layers)]
        layer_inputs = [layer.norm(state.window[:, n]) for n, layer in enumerate(layers)]
        keys, values = [], []
        for layer, inputs in zip(layers, layer_inputs, strict=True):
            # Slots 1 .. M hold the steps -M .. -1, and slot 0 is for the first step.
            pairs = layer.attention.keys_values(nn.functional.pad(inputs, (0, 0, 1, 0)))
            keys.append(pairs[0].contiguous())
            values.append(pairs[1].nan_to_num(0, 0, 0))
        embeddings = [layer.attention.position.position_embeddings() for layer in layers]
        return DecodeCache(
            config=self.config,
            timeline=timeline,
            timeline_index=torch.full((1,), size, device=timeline.device),
            keys=tuple(keys),
            values=tuple(values),
            ring_index=torch.zeros(1, dtype=torch.long, device=timeline.device),
            position_embeddings=torch.stack(embeddings),
            # Each memory is contiguous, so that a step reads it without a copy.
            long_term=torch.stack(state.long_term.unbind(1)).movedim(0, 1),
            write_buffer=tuple(self._write_buffers(state, layer_inputs)),
            window_length=state.window_length.clone(),
            segment_step=state.segment_step.clone(),
            odometry=state.odometry.clone(),
        )

    @torch.no_grad()
    def decode_step(
        self, x: Float[Tensor, "B D"], cache: Cache, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The output of one step; updates `cache` in place. No shape depends on the step.

        Raises:
            ValueError: a shape or dtype does not match this torso, or the cache is another torso's.
        """
        self.state_shape.check_step(x, cache, is_first, self.norm.weight)
        assert isinstance(cache, DecodeCache), type(cache)
        cache.reset(is_first.bool())  # ~ of a framework's 0 and 1 would be -1 and -2.
        order, visible = cache.ring_positions(self.config.reach)
        if self.odometry is not None:
            starts = (cache.window_length == 0)[:, None]
            moved, after = self.odometry(x[:, None], cache.odometry, starts)
            x = moved[:, 0]
            cache.odometry.copy_(after)
        x = x.to(cache.timeline.dtype)  # as wide as the stream of `forward` under autocast
        layer_inputs = []
        for n in range(self.config.num_layers):
            layer_inputs.append(x)
            x = self._layer(n).step(x, cache, n, self.memory_of_layer.get(n), order, visible)
        ended = cache.append(torch.stack(layer_inputs, dim=1))
        self._end_segments(cache, ended)
        return self.norm(x)

    def _write_buffers(
        self, state: MemoryState, layer_inputs: list[Float[Tensor, "B M D"]]
    ) -> Iterator[Tensor]:
        """Per long-term memory: its value after the steps of the unfinished segment."""
        size = self.config.segment_length
        valid = window_mask(state.segment_step, size)[:, None]
        memories = self._memories()
        for index, memory in enumerate(memories):
            if memory.writes_whole_segments:
                yield state.long_term.new_zeros(state.batch_size, 0)
                continue
            (n,) = self.layers_of_memory[index]
            encoded = memory.encode(layer_inputs[n][:, None, -size:], valid)
            yield memory.write(state.long_term[:, index], tuple(part[:, 0] for part in encoded))

    def _end_segments(self, cache: DecodeCache, ended: Bool[Tensor, " B"]) -> None:
        """Replace the long-term memories of the rows whose segment has ended."""
        from_segments = self.writes_whole_segments
        if may_skip(ended, is_cheap=not from_segments):
            return
        written = self._write_segments(cache) if from_segments else cache.write_buffer
        ended = ended.view(-1, *[1] * (cache.long_term.ndim - 2))
        for index, after in enumerate(written):
            long_term = cache.long_term[:, index]
            long_term.copy_(torch.where(ended, after, long_term))

    def _write_segments(self, cache: DecodeCache) -> list[Tensor]:
        """The long-term memories after the last S steps."""
        segments = cache.last_steps(self.config.segment_length)
        written = []
        for index, memory in enumerate(self._memories()):
            layers = self.layers_of_memory[index]
            inputs = torch.cat([self._layer(n).norm(segments[:, n]) for n in layers], dim=1)
            encoded = tuple(part[:, 0] for part in memory.encode(inputs[:, None]))
            written.append(memory.write(cache.long_term[:, index], encoded))
        return written

    def _forward(
        self,
        x: Tensor,
        state: MemoryState,
        is_first: Tensor,
        diagnostics: list[Diagnostics] | None,
    ) -> tuple[Tensor, MemoryState]:
        self.state_shape.check_sequence(x, state, is_first, self.norm.weight)
        is_first = is_first.bool()
        if self.odometry is not None:
            x, odometry = self.odometry(x, state.odometry, _starts(state, is_first))
            state = state._replace(odometry=odometry)
        if not self.config.is_shared:
            x, state = self._sequence(x, state, is_first, diagnostics)
            return self.norm(x), state
        outputs = []
        size = self.config.segment_length
        for begin in range(0, x.shape[1], size):
            block = slice(begin, begin + size)
            of_block: list[Diagnostics] | None = (
                None if diagnostics is None else [Diagnostics() for _ in diagnostics]
            )
            y, state = self._shared_block(x[:, block], state, is_first[:, block], of_block)
            outputs.append(y)
            for layer, new in zip(diagnostics or [], of_block or [], strict=True):
                for name, field in new.items():
                    layer[name] = torch.cat([layer[name], field], 1) if begin else field
        return self.norm(torch.cat(outputs, dim=1)), state

    def _sequence(
        self,
        x: Tensor,
        state: MemoryState,
        is_first: Tensor,
        diagnostics: list[Diagnostics] | None,
    ) -> tuple[Tensor, MemoryState]:
        """All T steps, where no memory is shared."""
        clock, ends = self._clock(state, is_first)
        memories = {n: state.long_term[:, index] for n, index in self.memory_of_layer.items()}
        x, timelines, after = self._run_layers(x, state, memories, clock, ends, diagnostics)
        long_term = state.long_term
        if memories:
            long_term = torch.stack([after[n] for n in memories], dim=1)
        return x, self._state_after(timelines, long_term, clock, state.odometry)

    def _shared_block(
        self,
        x: Tensor,
        state: MemoryState,
        is_first: Tensor,
        diagnostics: list[Diagnostics] | None,
    ) -> tuple[Tensor, MemoryState]:
        """Compute at most S steps with a memory that layers share.

        The write needs the inputs of all these layers up to the segment's end, and the steps after
        it need the write. At most one segment of a row ends among the steps. So a first pass
        computes the inputs up to that end, and a second pass recomputes the steps after it with the
        memory that they read. It is skipped if no step reads the write.
        """
        clock, ends = self._clock(state, is_first)
        (memory,), (layers,) = self._memories(), self.layers_of_memory
        initial = state.long_term[:, 0]

        def run(versions: Tensor) -> tuple[Tensor, list[Tensor]]:
            shared = dict.fromkeys(layers, versions)
            return self._run_layers(x, state, shared, clock, ends, diagnostics)[:2]

        y, timelines = run(torch.stack([initial, initial], dim=1))
        inputs = [self._layer(n).norm(timelines[n]) for n in layers]
        segments = [gather_segments(part, ends, self.config.segment_length) for part in inputs]
        encoded = memory.encode(torch.cat(segments, dim=2))
        versions = write_versions(memory, encoded, initial, ends)
        if diagnostics is not None:
            diagnostics[layers[0]].update(memory.diagnostics(inputs[0], versions, encoded))
        if not may_skip(clock.version[:, :-1] > 0):
            y, timelines = run(versions)
        long_term = latest_version(versions, clock)[:, None]
        return y, self._state_after(timelines, long_term, clock, state.odometry)

    def _run_layers(
        self,
        x: Tensor,
        state: MemoryState,
        memories: dict[int, Tensor],
        clock: Clock,
        ends: SegmentEnds,
        diagnostics: list[Diagnostics] | None,
    ) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
        """The output, every layer's timeline, and the memories that layers own after the steps."""
        timelines, after = [], {}
        for n in range(self.config.num_layers):
            timeline = torch.cat([state.window[:, n], x], dim=1)
            layer_diagnostics = None if diagnostics is None else diagnostics[n]
            inputs = (timeline, memories.get(n), clock, ends, layer_diagnostics)
            x, long_term = self._run_layer(n, inputs)
            timelines.append(timeline)
            if long_term is not None:
                after[n] = long_term
        return x, timelines, after

    def _run_layer(self, n: int, inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """`Layer.forward`; with gradient checkpointing, nothing inside it is kept."""
        layer = self._layer(n)
        if not (self.config.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        has_dropout = self.config.sublayers.has_dropout
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=has_dropout)

    def _clock(self, state: MemoryState, is_first: Tensor) -> tuple[Clock, SegmentEnds]:
        window_length, segment_length = self.config.window_length, self.config.segment_length
        clock = Clock.of(
            is_first,
            state.window_length,
            state.segment_step,
            max_age=window_length,
            segment_length=segment_length,
        )
        ends = SegmentEnds.of(clock, window_length=window_length, segment_length=segment_length)
        return clock, ends

    def _state_after(
        self, timelines: list[Tensor], long_term: Tensor, clock: Clock, odometry: Tensor
    ) -> MemoryState:
        size = self.config.window_length
        window = torch.stack([timeline[:, -size:] for timeline in timelines], dim=1)
        valid = window_mask(clock.age[:, -1], size)[:, None, :, None]
        return MemoryState(
            window=zero_invalid(window, valid),
            window_length=clock.age[:, -1],
            long_term=long_term,
            segment_step=clock.segment_step[:, -1],
            odometry=odometry,
        )

    def _layer(self, n: int) -> Layer:
        layer = self.layers[n]
        assert isinstance(layer, Layer)
        return layer

    def _memories(self) -> list[LongTermMemory]:
        """The state's long-term memories."""
        memories = [self._layer(layers[0]).memory for layers in self.layers_of_memory]
        return [memory for memory in memories if memory is not None]


def _starts(state: MemoryState, is_first: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where an episode starts: also at the first step after an empty state."""
    first = is_first[:, :1] | (state.window_length == 0)[:, None]
    return torch.cat([first, is_first[:, 1:]], dim=1)
