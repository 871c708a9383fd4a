"""Running mean and variance of training targets, part of the weights."""

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """A module that knows the mean and the variance [k...] of its targets.

    The first targets replace the initial mean 0 and variance 1.
    """

    RATE = 0.1
    """Share of the new targets in the statistics, per update."""
    MIN_DEVIATION = 1e-2
    """Smallest `deviation`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.mean: Tensor
        self.variance: Tensor
        self.num_updates: Tensor

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the targets; 1 before the first update."""
        return self.variance.sqrt().clamp(min=self.MIN_DEVIATION)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Move the statistics towards those of new targets."""
        # Targets that are not finite stop the run as a non-finite loss; keep the statistics.
        finite = (mean.isfinite() & variance.isfinite()).all()
        mean = torch.where(finite, mean, self.mean)
        variance = torch.where(finite, variance, self.variance)
        rate = torch.where(self.num_updates == 0, 1.0, self.RATE)
        # Variance of the mixture of old and new targets, which includes that between their means.
        between = rate * (1 - rate) * (mean - self.mean).square()
        self.variance.copy_((1 - rate) * self.variance + rate * variance + between)
        self.mean.lerp_(mean.to(self.mean.dtype), rate)
        self.num_updates += finite
