"""What a torso tells about itself: named tensors, detached, returned by `inspect`."""

from torch import Tensor

Record = dict[str, Tensor]
