"""One layer of the Memory Transformer-XL: attention, long-term memory, feed-forward, each gated."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtxl_rl.torso.attention import WindowAttention
from mtxl_rl.torso.clock import Clock, SegmentEnds
from mtxl_rl.torso.config import TorsoConfig
from mtxl_rl.torso.gates import Gate, build_gate
from mtxl_rl.torso.long_term import LongTermMemory, build_long_term

# B rows, T steps, M window, K = M + T, S segment, J blocks of C <= S steps, D width.


class FeedForward(nn.Module):
    """The position-wise feed-forward sub-layer: norm, two linear maps, ReLU, gate."""

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.feedforward_multiple * config.width
        self.norm = nn.LayerNorm(width)
        self.maps = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.gate = gate_of(config)

    def forward(self, stream: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The stream after the sub-layer."""
        return self.gate(stream, torch.relu(self.maps(self.norm(stream))))


def gate_of(config: TorsoConfig) -> Gate:
    """A sub-layer's gate."""
    return build_gate(
        config.gate,
        config.width,
        bias=config.gate_bias,
        mogrifier_rounds=config.mogrifier_rounds,
    )


class Layer(nn.Module):
    """Three gated sub-layers: attention, the read of the long-term memory, feed-forward.

    Every sub-layer sees the layer-normalised stream and its output passes a ReLU before the gate
    (TrXL-I and the gating layer of GTrXL, arXiv 1910.06764, eqs. 4 and 5).
    """

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width = config.width
        self.window_length = config.window_length
        self.segment_length = config.segment_length
        self.norm = nn.LayerNorm(width)
        self.attention = WindowAttention(
            width,
            num_heads=config.num_heads,
            window_length=config.window_length,
            num_persistent=config.num_persistent,
        )
        self.attention_gate = gate_of(config)
        memory = build_long_term(
            config.long_term, width, num_heads=config.num_heads, decay=config.decay
        )
        self.long_term: LongTermMemory | None = memory
        if memory is not None:
            self.read_norm = nn.LayerNorm(width)
            self.read_gate = gate_of(config)
        self.feedforward = FeedForward(config)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The shape of one row's long-term memory; (0,) without one."""
        return (0,) if self.long_term is None else self.long_term.memory_shape

    def forward(
        self,
        timeline: Float[Tensor, "B K D"],
        long_term: Float[Tensor, " B *memory"],
        clock: Clock,
        ends: SegmentEnds,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, " B *memory"]]:
        """Outputs of the T steps given, and the long-term memory after them.

        Args:
            timeline: the window's layer inputs, then those of the steps given.
            long_term: the memory at the last segment boundary before them.
            clock: where the T + 1 steps stand in their episodes.
            ends: the segments that end among the steps.
        """
        age = clock.age[:, :-1]
        inputs = self.norm(timeline)
        stream = timeline[:, self.window_length :]
        stream = self.attention_gate(stream, torch.relu(self.attention(inputs, age)))
        if self.long_term is not None:
            versions = self._write(self.long_term, inputs, long_term, ends)
            found = self._read(self.long_term, self.read_norm(stream), versions, clock)
            stream = self.read_gate(stream, torch.relu(found))
            long_term = self._latest(versions, clock)
        return self.feedforward(stream), long_term

    def step(
        self,
        stream: Float[Tensor, "B D"],
        attended: Float[Tensor, "B D"],
        long_term: Float[Tensor, " B *memory"],
    ) -> Float[Tensor, "B D"]:
        """The output of one step from what its attention gave and the memory that it reads."""
        stream = self.attention_gate(stream, torch.relu(attended))
        if self.long_term is not None:
            steps = rearrange(self.read_norm(stream), "b d -> b 1 1 d")
            selected = torch.ones(len(stream), 1, 1, 1, dtype=torch.bool, device=stream.device)
            found = self.long_term.read(steps, long_term[:, None, None], selected)
            stream = self.read_gate(stream, torch.relu(found[:, 0, 0]))
        return self.feedforward(stream)

    def _write(
        self, memory: LongTermMemory, inputs: Tensor, initial: Tensor, ends: SegmentEnds
    ) -> Tensor:
        """All versions [B, J + 1, ...]: the memory given, then the one each block's end makes."""
        batch, num_blocks = ends.first_input.shape
        index = ends.first_input[..., None] + torch.arange(
            self.segment_length, device=inputs.device
        )
        index = index.view(batch, -1, 1).expand(-1, -1, inputs.shape[2])
        segments = inputs.gather(1, index).unflatten(1, (num_blocks, self.segment_length))
        encoded = memory.encode(segments)
        continues = ends.continues.view(batch, num_blocks, *[1] * (initial.ndim - 1))
        version = initial
        versions = [initial]
        for j in range(num_blocks):
            version = memory.write(version * continues[:, j], tuple(part[:, j] for part in encoded))
            versions.append(version)
        return torch.stack(versions, dim=1)

    def _read(
        self, memory: LongTermMemory, steps: Tensor, versions: Tensor, clock: Clock
    ) -> Tensor:
        """What each of the T steps reads: in block j that is version j or j + 1."""
        num_steps = steps.shape[1]
        num_blocks = versions.shape[1] - 1
        block = min(num_steps, self.segment_length)
        pad = num_blocks * block - num_steps
        steps = nn.functional.pad(steps, (0, 0, 0, pad)).unflatten(1, (num_blocks, block))
        either = torch.arange(num_blocks, device=steps.device)[:, None, None]
        either = either + torch.arange(2, device=steps.device)
        blocks = [
            nn.functional.pad(field[:, :-1], (0, pad)).unflatten(1, (num_blocks, block))[..., None]
            for field in (clock.version, clock.has_version)
        ]
        selected = (blocks[0] == either) & blocks[1]
        pairs = torch.stack([versions[:, :-1], versions[:, 1:]], dim=2)
        return memory.read(steps, pairs, selected).flatten(1, 2)[:, :num_steps]

    def _latest(self, versions: Tensor, clock: Clock) -> Tensor:
        """The version that a next call begins with."""
        index: Int[Tensor, " B"] = clock.version[:, -1]
        rows = torch.arange(len(index), device=index.device)
        has = clock.has_version[:, -1].view(-1, *[1] * (versions.ndim - 2))
        return versions[rows, index] * has
