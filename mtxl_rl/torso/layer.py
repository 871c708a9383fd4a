"""One layer of the Memory Transformer-XL: attention, long-term memory, feed-forward, each gated."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.attention import Pairs, WindowAttention
from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.gates import Gate, build_gate
from mtxl_rl.torso.long_term import (
    AGaLiTeFeatures,
    Control,
    DeltaMemory,
    LinearMemory,
    MatrixMemory,
    RetentionFeatures,
    SlotMemory,
    SlotStore,
    TokenMemory,
)
from mtxl_rl.torso.record import Record
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, M window, K = M + T, S segment, J blocks of C <= S steps, D width, L slots.


class FeedForward(nn.Module):
    """The position-wise feed-forward sub-layer: norm, two linear maps, gate.

    With `glu` the hidden units are products (Shazeer 2020, arXiv 2002.05202): f(V x) * W x.
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feedforward_multiple * config.width
        choices = config.sublayers
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden * (2 if choices.glu else 1))
        self.activation = nn.GELU() if choices.activation == "gelu" else nn.ReLU()
        self.is_glu = choices.glu
        self.dropout = nn.Dropout(choices.feedforward_dropout)
        self.contract = nn.Linear(hidden, width)
        self.gate = gate_of(config)

    def forward(self, stream: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The stream after the sub-layer."""
        hidden = self.expand(self.norm(stream))
        if self.is_glu:
            opened, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation(opened) * hidden
        else:
            hidden = self.activation(hidden)
        return self.gate(stream, self.contract(self.dropout(hidden)))


class Layer(nn.Module):
    """Gated sub-layers: attention, with what a matrix memory says beside it, and feed-forward.

    Every sub-layer sees the layer-normalised stream and its output passes a ReLU before the gate
    (TrXL-I and the gating layer of GTrXL, arXiv 1910.06764, eqs. 4 and 5). A matrix memory is read
    by heads of its own, which share the attention's output map and gate, or with `read=gated` in a
    sub-layer of its own after it. Slots are read by the attention itself. With `all_attention`
    there is no feed-forward: the persistent pairs of the attention take its place (Sukhbaatar et
    al. 2019, arXiv 1907.01470).
    """

    def __init__(self, config: TorsoConfig, *, has_memory: bool) -> None:
        super().__init__()
        width = config.width
        self.window_length = config.window_length
        self.segment_length = config.segment_length
        self.reach = config.reach
        self.norm = nn.LayerNorm(width)
        self.matrix: MatrixMemory | None = matrix_of(config) if has_memory else None
        self.reads_apart = self.matrix is not None and config.read == "gated"
        self.attention = attention_of(
            config, has_guests=self.matrix is not None and not self.reads_apart
        )
        self.attention_gate = gate_of(config)
        if self.reads_apart:
            self.read_norm = nn.LayerNorm(width)
            self.read_gate = gate_of(config)
        self.feedforward = None if config.all_attention else FeedForward(config)
        self.store: SlotStore | None = None
        """The layer's own slots; None where the torso's are shared."""
        self.slots_norm: nn.LayerNorm | None = None
        if has_memory and config.reads_slots:
            self.slots_norm = nn.LayerNorm(width)
            if config.long_term == "tokens":
                self.store = self._tokens_of(config)
            elif not config.is_shared:
                self.store = slots_of(config, num_sources=1)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The shape of one row of the layer's own long-term memory; (0,) without one."""
        memory = self.matrix or self.store
        return (0,) if memory is None else memory.memory_shape

    def forward(
        self,
        timeline: Float[Tensor, "B K D"],
        long_term: Float[Tensor, " B *memory"] | None,
        clock: Clock,
        ends: SegmentEnds,
        record: Record | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, " B *memory"] | None]:
        """Outputs of the T steps given, and the layer's own long-term memory after them.

        Args:
            timeline: the window's layer inputs, then those of the steps given.
            long_term: the memory at the last segment boundary before them; None without one.
            clock: where the T + 1 steps stand in their episodes.
            ends: the segments that end among the steps.
            record: where to note what happens inside.
        """
        inputs = self.norm(timeline)
        stream = timeline[:, self.window_length :]
        pairs, guests, versions = None, None, None
        if self.store is not None:
            versions = self._write(self.store, inputs, long_term, ends, record)
            pairs = self.pairs_of_versions(self.store, versions, clock)
        if self.matrix is not None:
            versions = self._write(self.matrix, inputs, long_term, ends, record)
            if not self.reads_apart:
                steps = inputs[:, self.window_length :]
                guests = self._read(self.matrix, steps, versions, clock)
        stream = self._attend(inputs, stream, clock, record, pairs=pairs, guests=guests)
        if self.matrix is not None and versions is not None and self.reads_apart:
            found = self._read(self.matrix, self.read_norm(stream), versions, clock)
            stream = joined(self.read_gate, stream, found, record, "moved/read")
        if versions is not None:
            long_term = latest_version(versions, clock)
        return self._feed_forward(stream, record), long_term

    def with_pairs(
        self,
        timeline: Float[Tensor, "B K D"],
        pairs: Pairs | None,
        clock: Clock,
        record: Record | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Outputs of the steps given, in a layer that has no memory of its own."""
        stream = timeline[:, self.window_length :]
        stream = self._attend(self.norm(timeline), stream, clock, record, pairs=pairs)
        return self._feed_forward(stream, record)

    def guests_of_step(
        self, inputs: Float[Tensor, "B D"], long_term: Float[Tensor, " B *memory"] | None
    ) -> Float[Tensor, "B D"] | None:
        """What the attention's output map reads of the memory, of one step; None without any."""
        if self.matrix is None or self.reads_apart or long_term is None:
            return None
        return self._read_step(self.matrix, inputs, long_term)

    def step(
        self,
        stream: Float[Tensor, "B D"],
        attended: Float[Tensor, "B D"],
        long_term: Float[Tensor, " B *memory"] | None,
    ) -> Float[Tensor, "B D"]:
        """The output of one step from what its attention gave and the memory that it reads."""
        stream = self.attention_gate(stream, attended)
        if self.matrix is not None and self.reads_apart:
            assert long_term is not None
            found = self._read_step(self.matrix, self.read_norm(stream), long_term)
            stream = self.read_gate(stream, found)
        return self._feed_forward(stream, None)

    def segments(
        self, timeline: Float[Tensor, "B K D"], ends: SegmentEnds
    ) -> Float[Tensor, "B J S D"]:
        """The normalised inputs of the segment that ends in each block."""
        return gather_segments(self.norm(timeline), ends, self.segment_length)

    def pairs_of_versions(
        self, store: SlotStore, versions: Float[Tensor, "B V L D"], clock: Clock
    ) -> Pairs:
        """Keys and values of the slots: in block j of version j, of version j + 1, and empty."""
        empty = torch.zeros_like(versions[:, :1])
        keys, values = self._slot_pairs(store, torch.cat([versions, empty], dim=1))

        def choose(pairs: Tensor) -> Tensor:
            by_block = [pairs[:, :-2], pairs[:, 1:-1], pairs[:, -1:].expand_as(pairs[:, :-2])]
            return torch.cat(by_block, dim=3)

        reads = clock.reads(self.segment_length)
        seen = torch.cat([reads, ~reads.any(-1, keepdim=True)], dim=-1)
        visible = seen.repeat_interleave(versions.shape[2], dim=-1)
        return Pairs(choose(keys), choose(values), visible)

    def pairs_of_step(self, store: SlotStore, memory: Float[Tensor, "B L D"]) -> Pairs:
        """Keys and values of the slots that one step sees."""
        keys, values = self._slot_pairs(store, memory[:, None])
        shape = (memory.shape[0], 1, 1, memory.shape[1])
        return Pairs(keys, values, torch.ones(shape, dtype=torch.bool, device=memory.device))

    def _slot_pairs(
        self, store: SlotStore, memory: Float[Tensor, "B V L D"]
    ) -> Float[Tensor, "two B V H L E"]:
        assert self.slots_norm is not None
        inputs = self.slots_norm(store.slots(memory))
        pairs = self.attention.keys_values(inputs.flatten(1, 2))
        return rearrange(pairs, "two b h (v l) e -> two b v h l e", v=memory.shape[1])

    def _write(
        self,
        memory: MatrixMemory | SlotStore,
        inputs: Tensor,
        long_term: Tensor | None,
        ends: SegmentEnds,
        record: Record | None,
    ) -> Tensor:
        """All versions of the layer's own memory."""
        assert long_term is not None
        encoded = memory.encode(gather_segments(inputs, ends, self.segment_length))
        versions = write_versions(memory, encoded, long_term, ends)
        if record is not None:
            if memory is self.matrix:
                note(record, self.matrix.describe(inputs[:, self.window_length :]))
            else:
                assert self.store is not None
                note(record, self.store.describe(versions, encoded))
        return versions

    def _attend(
        self,
        inputs: Tensor,
        stream: Tensor,
        clock: Clock,
        record: Record | None,
        *,
        pairs: Pairs | None,
        guests: Tensor | None = None,
    ) -> Tensor:
        age = clock.age[:, :-1].clamp(max=self.reach)
        found = self.attention(inputs, age, pairs, guests, record)
        if record is not None and guests is not None:
            without = self.attention_gate(stream, found - self.attention.of_guests(guests))
            record["moved/read"] = distance(without, self.attention_gate(stream, found))
        return joined(self.attention_gate, stream, found, record, "moved/attention")

    def _feed_forward(self, stream: Tensor, record: Record | None) -> Tensor:
        if self.feedforward is None:
            return stream
        after: Tensor = self.feedforward(stream)
        if record is not None:
            record["moved/feedforward"] = distance(stream, after)
        return after

    def _read(self, memory: MatrixMemory, steps: Tensor, versions: Tensor, clock: Clock) -> Tensor:
        """What each of the T steps reads: in block j that is version j or j + 1."""
        num_steps = steps.shape[1]
        num_blocks = versions.shape[1] - 1
        block = min(num_steps, self.segment_length)
        pad = num_blocks * block - num_steps
        steps = nn.functional.pad(steps, (0, 0, 0, pad)).unflatten(1, (num_blocks, block))
        pairs = torch.stack([versions[:, :-1], versions[:, 1:]], dim=2)
        found = memory.read(steps, pairs, clock.reads(self.segment_length))
        return found.flatten(1, 2)[:, :num_steps]

    def _read_step(self, memory: MatrixMemory, step: Tensor, long_term: Tensor) -> Tensor:
        """What one step reads."""
        selected = torch.ones(step.shape[0], 1, 1, 1, dtype=torch.bool, device=step.device)
        steps = rearrange(step, "b d -> b 1 1 d")
        return memory.read(steps, long_term[:, None, None], selected)[:, 0, 0]

    def _tokens_of(self, config: TorsoConfig) -> TokenMemory:
        separate = config.tokens.separate_control
        if separate:
            feedforward = None if config.all_attention else FeedForward(config)
            control = Control(
                nn.LayerNorm(config.width), attention_of(config), gate_of(config), feedforward
            )
        else:
            control = Control(self.norm, self.attention, self.attention_gate, self.feedforward)
        return TokenMemory(
            config.width,
            num_tokens=config.tokens.num_tokens,
            control=control,
            is_shared=not separate,
        )


def gate_of(config: TorsoConfig) -> Gate:
    """A sub-layer's gate."""
    return build_gate(
        config.gate,
        config.width,
        bias=config.gate_bias,
        mogrifier_rounds=config.mogrifier_rounds,
        rectified=config.sublayers.output_relu,
    )


def attention_of(config: TorsoConfig, *, has_guests: bool = False) -> WindowAttention:
    """A layer's attention; where it reads slots, its blocks are those of the memory's versions."""
    return WindowAttention(
        config.width,
        num_heads=config.num_heads,
        window_length=config.window_length,
        num_persistent=config.num_persistent,
        position=config.position,
        block_length=config.segment_length if config.reads_slots else config.window_length,
        one_kv_head=config.sublayers.one_kv_head,
        dropout=config.sublayers.attention_dropout,
        output_dropout=config.sublayers.output_dropout,
        has_guests=has_guests,
    )


def matrix_of(config: TorsoConfig) -> DeltaMemory | LinearMemory | None:
    """A layer's matrix memory, if that is the kind."""
    width, num_heads, decay = config.width, config.num_heads, config.decay
    is_apart = config.read == "gated"
    if config.long_term == "delta":
        return DeltaMemory(width, num_heads=num_heads, decay=decay, has_output=is_apart)
    features: RetentionFeatures | AGaLiTeFeatures
    if config.long_term == "linear":
        features = RetentionFeatures(width, num_heads=num_heads, decay=decay)
    elif config.long_term == "agalite":
        features = AGaLiTeFeatures(width, num_heads=num_heads)
    else:
        return None
    return LinearMemory(width, features, has_output=is_apart)


def slots_of(config: TorsoConfig, *, num_sources: int) -> SlotMemory:
    """Slots that are written from the inputs of `num_sources` layers."""
    slots = config.slots
    return SlotMemory(
        config.width,
        num_slots=slots.num_slots,
        num_sources=num_sources,
        num_heads=config.num_heads,
        cell=slots.cell,
        write_iterations=slots.write_iterations,
        max_half_life=slots.max_half_life,
        detach_inputs=slots.detach_inputs,
    )


def gather_segments(
    inputs: Float[Tensor, "B K D"], ends: SegmentEnds, segment_length: int
) -> Float[Tensor, "B J S D"]:
    """The steps of the segment that ends in each block."""
    batch, num_blocks = ends.first_input.shape
    index = ends.first_input[..., None] + torch.arange(segment_length, device=inputs.device)
    index = index.view(batch, -1, 1).expand(-1, -1, inputs.shape[2])
    return inputs.gather(1, index).unflatten(1, (num_blocks, segment_length))


def write_versions(
    memory: MatrixMemory | SlotStore,
    encoded: tuple[Tensor, ...],
    initial: Float[Tensor, " B *memory"],
    ends: SegmentEnds,
) -> Float[Tensor, "B V *memory"]:
    """All J + 1 versions: the memory given, then the one that each block's end makes."""
    batch, num_blocks = ends.first_input.shape
    continues = ends.continues.view(batch, num_blocks, *[1] * (initial.ndim - 1))
    version = initial
    versions = [initial]
    for j in range(num_blocks):
        before = version.masked_fill(~continues[:, j], 0)
        version = memory.write(before, tuple(part[:, j] for part in encoded))
        versions.append(version)
    return torch.stack(versions, dim=1)


def latest_version(
    versions: Float[Tensor, "B V *memory"], clock: Clock
) -> Float[Tensor, " B *memory"]:
    """The version that a next call begins with."""
    index: Int[Tensor, " B"] = clock.version[:, -1]
    rows = torch.arange(index.shape[0], device=index.device)
    has = clock.has_version[:, -1].view(-1, *[1] * (versions.ndim - 2))
    return versions[rows, index].masked_fill(~has, 0)


def joined(
    gate: Gate, stream: Tensor, found: Tensor, record: Record | None, name: str
) -> Float[Tensor, "B T D"]:
    """The stream after a sub-layer that found `found`."""
    after = gate(stream, found)
    if record is not None:
        record[name] = distance(stream, after)
    return after


def distance(before: Float[Tensor, "B T D"], after: Float[Tensor, "B T D"]) -> Tensor:
    """How far a sub-layer moved the stream of each step, relative to its norm, [B, T]."""
    return ((after - before).norm(dim=-1) / before.norm(dim=-1)).detach()


def note(record: Record, described: Record) -> None:
    """Add what a memory tells of itself."""
    record.update({name: field.detach() for name, field in described.items()})
