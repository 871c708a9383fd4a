"""Which earlier steps a read of the delta memory returns.

The delta rule makes this exact. A write maps W -> a (I - b k k^T) W + b k v^T. So the readout is a
sum over all writes, y = W^T q = sum_i w_i v_i, with the weights w_i = b_i (k_i . r_i). Here r_i is
the query carried back to write i: r_i = a_{i+1} (I - b_{i+1} k_{i+1} k_{i+1}^T) r_{i+1}, from
r_n = q at the last write n. A value that was overwritten has lost its weight.

T steps, H heads, E features of a head.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtxl_rl.torso import Diagnostics


def has_retrievals(diagnostics: Diagnostics) -> bool:
    """Whether a layer's diagnostics hold what `retrieval_shares` needs."""
    return "memory/query" in diagnostics


def retrieval_shares(
    diagnostics: Diagnostics, is_first: Bool[Tensor, " T"], *, segment_length: int
) -> Float[Tensor, "T T"]:
    """Return the share of each write (second axis) in each step's readout (first axis).

    The share of write i is w_i (v_i . y) / |y|^2, averaged over heads. The shares of a step that
    reads an unempty memory sum to 1; a negative share is a write that the readout cancels.

    Args:
        diagnostics: Of one layer, by `MemoryTransformer.inspect` over one row from an empty memory.
        is_first: Where the row's episodes start.
        segment_length: Steps between two writes, S.
    """
    weights = retrieval_weights(diagnostics, is_first, segment_length=segment_length)
    value = diagnostics["memory/value"][0].to(weights.dtype)
    readout = torch.einsum("htw,whe->the", weights, value)
    shares = weights * torch.einsum("the,whe->htw", readout, value)
    norm = readout.square().sum(-1).mT[..., None]
    return (shares / norm.clamp(min=torch.finfo(norm.dtype).tiny)).mean(0)


def retrieval_weights(
    diagnostics: Diagnostics, is_first: Bool[Tensor, " T"], *, segment_length: int
) -> Float[Tensor, "H T T"]:
    """Return the weight w of each write's value (last axis) in each step's readout; see above."""
    key, query, strength, retention = (
        diagnostics[f"memory/{name}"][0].double()
        for name in ("key", "query", "strength", "retention")
    )
    first, end = visible_writes(is_first, segment_length=segment_length)
    num_steps = len(is_first)
    carried = query.clone()
    weights = query.new_zeros(query.shape[1], num_steps, num_steps)
    for write in reversed(range(num_steps)):
        reads = ((first <= write) & (write < end)).nonzero()[:, 0]
        overlap = strength[write] * torch.einsum("the,he->th", carried[reads], key[write])
        weights[:, reads, write] = overlap.mT
        kept = carried[reads] - overlap[..., None] * key[write]
        carried[reads] = retention[write][:, None] * kept
    return weights


def visible_writes(
    is_first: Bool[Tensor, " T"], *, segment_length: int
) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
    """Return, for each step, the first write of its episode and the end of those it can read.

    A step reads the memory as it stood at the last segment boundary of its episode.
    """
    steps = torch.arange(len(is_first), device=is_first.device)
    first = torch.where(is_first, steps, 0).cummax(0).values
    return first, first + (steps - first) // segment_length * segment_length
