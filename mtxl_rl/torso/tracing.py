"""Reports whether the current code is traced or captured, and so may not read from a device."""

import torch


def is_tracing_or_capturing() -> bool:
    """Whether a compiler traces this code or a CUDA graph records it: it may not synchronise."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
