"""Diagnostics of each layer, for `inspect`."""

from torch import Tensor

Diagnostics = dict[str, Tensor]
"""Named tensors without gradients."""
