"""One layer of the Memory Transformer-XL: attention, long-term memory, feed-forward, each gated."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.attention import Slots, WindowAttention
from mtxl_rl.torso.cache import DecodeCache
from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.feedforward import FeedForward
from mtxl_rl.torso.gates import Gate, sublayer_gate
from mtxl_rl.torso.long_term import LongTermMemory, Sublayers, build_memory
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, M window, K = M + T, S segment, J blocks of C <= S steps, V versions, D width.


class Layer(nn.Module):
    """Gated sub-layers: attention, reading a long-term memory, and feed-forward.

    Every sub-layer reads the layer-normalised stream, and its output passes a ReLU before the gate
    (TrXL-I and the gating layer of GTrXL, arXiv 1910.06764, eqs. 4 and 5). A matrix memory is read
    by heads in parallel with the attention, behind its output map and gate, or with
    `read=sequential` in a sub-layer after it. The attention itself reads slots. With
    `all_attention` the persistent pairs of the attention replace the feed-forward sub-layer
    (Sukhbaatar et al. 2019, arXiv 1907.01470).
    """

    def __init__(self, config: TorsoConfig, *, has_memory: bool) -> None:
        super().__init__()
        self.window_length = config.window_length
        self.segment_length = config.segment_length
        self.reach = config.reach
        self.is_shared = config.is_shared
        """Whether several layers share the memory, which the torso then sets and writes."""
        self.read = "none"
        """How the layer reads its memory: none, parallel, sequential or slots."""
        if has_memory:
            self.read = "slots" if config.reads_slots else config.read
        self.norm = nn.LayerNorm(config.width)
        # The order of the parts is that of the weights in checkpoints.
        self.memory: LongTermMemory | None = None
        if self.read in ("parallel", "sequential"):
            self.memory = build_memory(config)
        self.attention = WindowAttention(config, reads_memory=self.read == "parallel")
        self.attention_gate = sublayer_gate(config)
        if self.read == "sequential":
            self.read_norm = nn.LayerNorm(config.width)
            self.read_gate = sublayer_gate(config)
        self.feedforward = None if config.all_attention else FeedForward(config)
        if self.read == "slots":
            self.slots_norm = nn.LayerNorm(config.width)
            self.memory = None if self.is_shared else build_memory(config)
        if self.memory is not None:
            self.memory.connect(
                Sublayers(self.norm, self.attention, self.attention_gate, self.feedforward)
            )

    def forward(
        self,
        timeline: Float[Tensor, "B K D"],
        long_term: Float[Tensor, " B *memory"] | None,
        clock: Clock,
        ends: SegmentEnds,
        diagnostics: Diagnostics | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, " B *memory"] | None]:
        """The outputs of T steps, and the layer's own long-term memory after them.

        Args:
            timeline: the window's layer inputs, then those of the T steps.
            long_term: the memory at the last segment boundary before the T steps; of a shared
                memory all versions, which the torso writes; None without a memory.
            clock: the positions of the T + 1 steps in their episodes.
            ends: the segments that end among the steps.
            diagnostics: where `inspect` collects what happens inside.
        """
        inputs, stream = self.norm(timeline), timeline[:, self.window_length :]
        versions = self._write(inputs, long_term, ends, diagnostics)
        readout = slots = None
        if self.read == "parallel":
            readout = self._read(inputs[:, self.window_length :], versions, clock, diagnostics)
        if self.read == "slots":
            slots = self._slots(versions, clock.reads(self.segment_length))
        age = clock.age[:, :-1].clamp(max=self.reach)
        attended = self.attention(inputs, age, readout, slots, diagnostics)
        if diagnostics is not None and readout is not None:
            diagnostics["moved/read"] = self._moved_by_readout(stream, attended, readout)
        stream = gated_residual(self.attention_gate, stream, attended, diagnostics, "attention")
        if self.read == "sequential":
            readout = self._read(self.read_norm(stream), versions, clock, diagnostics)
            stream = gated_residual(self.read_gate, stream, readout, diagnostics, "read")
        stream = self._feed_forward(stream, diagnostics)
        if versions is None or self.is_shared:
            return stream, None
        return stream, latest_version(versions, clock)

    def step(
        self,
        x: Float[Tensor, "B D"],
        cache: DecodeCache,
        n: int,
        memory_index: int | None,
        order: Int[Tensor, " R"],
        visible: Bool[Tensor, "B R"],
    ) -> Float[Tensor, "B D"]:
        """The output of one step of layer `n`; updates its keys, values and write buffer in place.

        Args:
            x: the layer's input.
            cache: the torso's.
            n: which layer of the torso this is.
            memory_index: which of the cache's long-term memories the layer reads.
            order: see `DecodeCache.ring_positions`.
            visible: likewise.
        """
        inputs = self.norm(x)
        key, value = self.attention.keys_values(inputs[:, None])
        # Masked slots have weight 0, and 0 times a value that is not finite is NaN.
        value = value.nan_to_num(0, 0, 0)
        for ring, new in ((cache.keys[n], key), (cache.values[n], value)):
            # Under autocast the ring has the type that `prefill` computed.
            ring.index_copy_(2, cache.ring_index, new.to(ring.dtype))
        window = (cache.keys[n], cache.values[n], cache.position_embeddings[n], order, visible)
        version = None if memory_index is None else cache.long_term[:, memory_index, None]
        readout = self._read_step(inputs, version) if self.read == "parallel" else None
        slots = self._slots(version, None) if self.read == "slots" else None
        stream = self.attention_gate(x, self.attention.step(inputs, *window, readout, slots))
        if self.read == "sequential":
            stream = self.read_gate(stream, self._read_step(self.read_norm(stream), version))
        if self.memory is not None and memory_index is not None:
            self.memory.write_step(cache.write_buffer[memory_index], inputs)
        return self._feed_forward(stream, None)

    def _write(
        self,
        inputs: Float[Tensor, "B K D"],
        long_term: Tensor | None,
        ends: SegmentEnds,
        diagnostics: Diagnostics | None,
    ) -> Float[Tensor, "B V *memory"] | None:
        """All versions of the layer's long-term memory."""
        if self.memory is None or long_term is None or self.is_shared:
            return long_term
        encoded = self.memory.encode(gather_segments(inputs, ends, self.segment_length))
        versions = write_versions(self.memory, encoded, long_term, ends)
        if diagnostics is not None:
            steps = inputs[:, self.window_length :]
            diagnostics.update(self.memory.diagnostics(steps, versions, encoded))
        return versions

    def _read(
        self,
        steps: Float[Tensor, "B T D"],
        versions: Float[Tensor, "B V *memory"] | None,
        clock: Clock,
        diagnostics: Diagnostics | None,
    ) -> Float[Tensor, "B T D"]:
        """The readout of each of the T steps; in block j from version j or j + 1."""
        assert self.memory is not None
        assert versions is not None
        if diagnostics is not None:
            diagnostics.update(self.memory.read_diagnostics(steps))
        num_steps, num_blocks = steps.shape[1], versions.shape[1] - 1
        block = min(num_steps, self.segment_length)
        padding = (0, 0, 0, num_blocks * block - num_steps)
        blocks = nn.functional.pad(steps, padding).unflatten(1, (num_blocks, block))
        readout = self.memory.read(blocks, versions, clock.reads(self.segment_length))
        return readout.flatten(1, 2)[:, :num_steps]

    def _read_step(
        self, step: Float[Tensor, "B D"], version: Float[Tensor, "B 1 *memory"] | None
    ) -> Float[Tensor, "B D"]:
        """The readout of one step."""
        assert self.memory is not None
        assert version is not None
        return self.memory.read(rearrange(step, "b d -> b 1 1 d"), version, None)[:, 0, 0]

    def _slots(
        self,
        versions: Float[Tensor, "B V *memory"] | None,
        reads: Bool[Tensor, "B J C two"] | None,
    ) -> Slots:
        """The slots that the steps of each block see; of a single version without `reads`."""
        assert self.memory is not None
        assert versions is not None
        vectors = self.memory.slots(versions)
        if reads is not None:
            empty = self.memory.slots(torch.zeros_like(versions[:, :1]))
            vectors = torch.cat([vectors, empty], dim=1)
            reads = torch.cat([reads, ~reads.any(-1, keepdim=True)], dim=-1)
        return Slots(self.slots_norm(vectors), reads)

    def _feed_forward(self, stream: Tensor, diagnostics: Diagnostics | None) -> Tensor:
        if self.feedforward is None:
            return stream
        after: Tensor = self.feedforward(stream)
        if diagnostics is not None:
            diagnostics["moved/feedforward"] = relative_distance(stream, after)
        return after

    def _moved_by_readout(self, stream: Tensor, attended: Tensor, readout: Tensor) -> Tensor:
        """The distance by which a parallel readout moves the stream."""
        without = self.attention_gate(stream, attended - self.attention.map_readout(readout))
        return relative_distance(without, self.attention_gate(stream, attended))


def gather_segments(
    inputs: Float[Tensor, "B K D"], ends: SegmentEnds, segment_length: int
) -> Float[Tensor, "B J S D"]:
    """The steps of the segment that ends in each block."""
    batch, num_blocks = ends.first_input.shape
    index = ends.first_input[..., None] + torch.arange(segment_length, device=inputs.device)
    index = index.view(batch, -1, 1).expand(-1, -1, inputs.shape[2])
    return inputs.gather(1, index).unflatten(1, (num_blocks, segment_length))


def write_versions(
    memory: LongTermMemory,
    encoded: tuple[Tensor, ...],
    initial: Float[Tensor, " B *memory"],
    ends: SegmentEnds,
) -> Float[Tensor, "B V *memory"]:
    """All J + 1 versions: the initial memory, then one after the write of each block."""
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
    """The version that a following call starts from."""
    index: Int[Tensor, " B"] = clock.version[:, -1]
    rows = torch.arange(index.shape[0], device=index.device)
    has_version = clock.has_version[:, -1].view(-1, *[1] * (versions.ndim - 2))
    return versions[rows, index].masked_fill(~has_version, 0)


def gated_residual(
    gate: Gate, stream: Tensor, output: Tensor, diagnostics: Diagnostics | None, name: str
) -> Float[Tensor, "B T D"]:
    """Gated residual update with a sub-layer's output."""
    after = gate(stream, output)
    if diagnostics is not None:
        diagnostics[f"moved/{name}"] = relative_distance(stream, after)
    return after


def relative_distance(before: Float[Tensor, "B T D"], after: Float[Tensor, "B T D"]) -> Tensor:
    """The distance per step, relative to the norm before, [B, T]."""
    return (after - before).norm(dim=-1) / before.norm(dim=-1)
