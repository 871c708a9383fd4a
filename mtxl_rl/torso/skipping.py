"""When work that no row needs may be skipped."""

import torch
from jaxtyping import Bool
from torch import Tensor
from torch._C._functorch import maybe_current_level


def may_skip(is_needed: Bool[Tensor, "..."], *, is_cheap: bool = False) -> bool:
    """Whether work may be skipped because `is_needed` is False everywhere.

    Always False where the values are unknown: while a compiler traces the code, while a CUDA graph
    records it, and inside torch.vmap. Cheap work is never skipped on CUDA, to avoid a
    synchronisation.
    """
    if torch.compiler.is_compiling() or maybe_current_level() is not None:
        return False
    if is_needed.is_cuda and (is_cheap or torch.cuda.is_current_stream_capturing()):
        return False
    return not bool(is_needed.any())
