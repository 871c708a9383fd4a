"""What `inspect` reports about each layer."""

from torch import Tensor

Diagnostics = dict[str, Tensor]
"""Named tensors without gradients."""
