"""Baselines with the torso's interface and without a window: GRU, LSTM and feed-forward."""

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mtxl_rl.torso.cache import Cache
from mtxl_rl.torso.feedforward import FeedForward
from mtxl_rl.torso.state import MemoryState
from mtxl_rl.torso.state_shape import StateShape
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, N layers, D width, P parts of a cell's state (GRU: h; LSTM: h and c), R runs.


class WindowlessTorso(nn.Module):
    """A torso whose states have no window, a segment step of 0, and a memory [N, *memory]."""

    writes_whole_segments = False
    norm: nn.LayerNorm

    def __init__(self, config: TorsoConfig, *memory: int) -> None:
        super().__init__()
        self.config = deepcopy(config)  # The caller may change its configuration later.
        layers = config.num_layers
        self.state_shape = StateShape(
            config=self.config, window=(layers, 0, config.width), long_term=(layers, *memory)
        )

    def initial_state(self, batch_size: int) -> MemoryState:
        """The state of `batch_size` episodes that are about to start: all zeros."""
        return self.state_shape.zeros(batch_size, self.norm.weight)

    @torch.no_grad()
    def prefill(
        self, state: MemoryState, *, num_steps: int = 128, timeline: Tensor | None = None
    ) -> Cache:
        """The cache for acting from `state`, which needs no timeline."""
        del num_steps, timeline
        self.state_shape.check_state(state, self.norm.weight)
        return Cache.of(state, self.config)


class Runs:
    """The runs between resets, as one packed batch of independent sequences.

    So one call of torch's fused kernels handles any mixture of resets, with the work of B x T steps
    and as many time steps as the longest run. The host reads the runs' lengths.
    """

    def __init__(self, is_first: Bool[Tensor, "B T"]) -> None:
        starts = is_first.clone()
        starts[:, 0] = True
        run = starts.flatten().cumsum(0).view_as(starts) - 1
        length = run.flatten().bincount()
        rank = length.argsort(descending=True, stable=True).argsort()[run]
        step = torch.arange(starts.shape[1], device=is_first.device)
        position = step - torch.where(starts, step, 0).cummax(dim=1).values
        self.num_runs = len(length)
        self.order = (position * self.num_runs + rank).flatten().argsort()
        self.first: Int[Tensor, " B"] = rank[:, 0]
        self.last: Int[Tensor, " B"] = rank[:, -1]
        length = length.cpu()
        self.batch_sizes = (length > torch.arange(int(length.max()))[:, None]).sum(1)

    def pack(self, x: Float[Tensor, "B T D"]) -> PackedSequence:
        """The steps of all runs, the longest run first."""
        return PackedSequence(x.flatten(0, 1)[self.order], self.batch_sizes)

    def unpack(self, packed: PackedSequence, like: Float[Tensor, "B T D"]) -> Tensor:
        """The inverse of `pack`, in the shape of `like`."""
        return packed.data[self.order.argsort()].view_as(like)

    def starts(self, state: Float[Tensor, "N B D"]) -> Float[Tensor, "N R D"]:
        """The initial state of each run: its row's state for a row's first run, zero for others."""
        zeros = state.new_zeros(state.shape[0], self.num_runs, state.shape[2])
        return zeros.index_copy(1, self.first, state)


class RecurrentTorso(WindowlessTorso):
    """N layers of GRU or LSTM cells, whose state is zero where an episode starts.

    The state's `long_term` is [B, N, P, D].
    """

    def __init__(self, config: TorsoConfig) -> None:
        num_parts = 2 if config.kind == "lstm" else 1
        super().__init__(config, num_parts, config.width)
        self.num_parts = num_parts
        cell = nn.LSTM if config.kind == "lstm" else nn.GRU
        self.cells: nn.LSTM | nn.GRU = cell(config.width, config.width, config.num_layers)
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, x: Float[Tensor, "B T D"], state: MemoryState, is_first: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """The outputs of T >= 1 steps and the state after them; see `MemoryTransformer.forward`."""
        self.state_shape.check_sequence(x, state, is_first, self.norm.weight)
        is_first = is_first.bool()
        runs = Runs(is_first)
        before = state.long_term.masked_fill(is_first[:, :1, None, None], 0)
        parts = [runs.starts(part.transpose(0, 1)) for part in before.unbind(2)]
        packed, parts = self._run(runs.pack(x), parts)
        y = self.norm(runs.unpack(packed, x))
        after = torch.stack([part[:, runs.last].transpose(0, 1) for part in parts], dim=2)
        # Narrower weights return a narrower state.
        return y, state._replace(long_term=after.to(state.long_term.dtype))

    @torch.no_grad()
    def decode_step(
        self, x: Float[Tensor, "B D"], cache: Cache, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The output of one step; updates `cache` in place."""
        self.state_shape.check_step(x, cache, is_first, self.norm.weight)
        cache.long_term.masked_fill_(is_first.bool()[:, None, None, None], 0)
        parts = [part.transpose(0, 1).contiguous() for part in cache.long_term.unbind(2)]
        y, parts = self._run(x[None], parts)
        after = [part.transpose(0, 1) for part in parts]
        cache.long_term.copy_(torch.stack(after, dim=2))
        return self.norm(y[0])

    def _run(self, steps: Any, parts: list[Tensor]) -> tuple[Any, list[Tensor]]:  # noqa: ANN401
        """The cells' outputs for plain or packed steps, and the parts of their state after them.

        It computes in the weights' precision: under CUDA's autocast torch runs these cells in
        float16, where small gradients vanish.
        """
        weight = self.norm.weight
        steps, *parts = (part.to(weight.dtype) for part in (steps, *parts))
        with torch.autocast(weight.device.type, enabled=False):
            if self.num_parts == 2:
                y, after = self.cells(steps, (parts[0], parts[1]))
                return y, list(after)
            y, h = self.cells(steps, parts[0])
            return y, [h]


class FeedForwardTorso(WindowlessTorso):
    """N gated feed-forward sub-layers: the transformer without any memory."""

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__(config, 0)
        self.layers = nn.Sequential(*(FeedForward(config) for _ in range(config.num_layers)))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, x: Float[Tensor, "B T D"], state: MemoryState, is_first: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """The outputs of T >= 1 steps; the state stays empty."""
        self.state_shape.check_sequence(x, state, is_first, self.norm.weight)
        return self.norm(self.layers(x)), state

    @torch.no_grad()
    def decode_step(
        self, x: Float[Tensor, "B D"], cache: Cache, is_first: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """The output of one step."""
        self.state_shape.check_step(x, cache, is_first, self.norm.weight)
        return self.norm(self.layers(x))
