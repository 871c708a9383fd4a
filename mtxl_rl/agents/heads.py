"""Actions: what the policy's features say about them, how to sample and to weigh them.

Inside the library a discrete action is an integer tensor [..., components] (one component for
Discrete), a continuous one a float tensor [..., dimensions] in units where the space is -1 .. 1.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn


class CategoricalHead(nn.Module):
    """Discrete and MultiDiscrete: independent categoricals, masked to the legal actions."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete, width: int) -> None:
        super().__init__()
        self.is_single = isinstance(space, spaces.Discrete)
        if isinstance(space, spaces.Discrete):
            self.num_choices, self.start = [int(space.n)], np.asarray([int(space.start)])
        else:
            self.num_choices, self.start = space.nvec.tolist(), space.start
        self.action_shape: tuple[int, ...] = (len(self.num_choices),)
        self.action_dtype = torch.long
        self.encoded_width = sum(self.num_choices)
        self.output = nn.Linear(width, self.encoded_width)

    def forward(self, features: Tensor, mask: Tensor | None) -> Float[Tensor, "*batch n"]:
        """Log probabilities of every component's choices, side by side."""
        logits = self.output(features).float() if features.dtype != torch.float64 else (
            self.output(features))  # fmt: skip
        if mask is not None:
            logits = logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min / 4)
        return torch.cat([part.log_softmax(-1) for part in self._parts(logits)], dim=-1)

    def noise(self, num_rows: int, generator: torch.Generator) -> Float[Tensor, "B n"]:
        """What `sample` makes random: uniform in 0 .. 1."""
        shape = (num_rows, self.encoded_width)
        return torch.rand(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, noise: Tensor | None) -> Tensor:
        """Gumbel-max: the argmax of log probabilities plus Gumbel noise; without it, the likeliest.

        No question to the device, and nothing drawn inside, so that it compiles.
        """
        if noise is not None:
            parameters = parameters - (-noise.clamp(1e-20, 1 - 1e-7).log()).log()
        return torch.stack([part.argmax(-1) for part in self._parts(parameters)], dim=-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """The sum over components."""
        parts = zip(self._parts(parameters), action.split(1, dim=-1), strict=True)
        return torch.cat([part.gather(-1, choice) for part, choice in parts], dim=-1).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """The sum over components."""
        return -(parameters.exp() * parameters).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """One-hot, side by side."""
        # Not torch's one_hot, which looks at the choices first.
        hot = [
            choice == torch.arange(size, device=action.device)
            for choice, size in zip(action.split(1, dim=-1), self.num_choices, strict=True)
        ]
        return torch.cat(hot, dim=-1).long()

    def in_space(self, action: Tensor) -> Tensor:
        """Integers from the space's start on."""
        chosen = action + torch.as_tensor(self.start, device=action.device)
        return chosen[..., 0] if self.is_single else chosen

    def to_env(self, action: Tensor) -> NDArray[np.generic]:
        """What the environment takes."""
        array: NDArray[np.generic] = self.in_space(action.cpu()).numpy()
        return array

    def _parts(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return parameters.split(self.num_choices, dim=-1)


class GaussianHead(nn.Module):
    """Box: a diagonal Gaussian with a learned, state-independent deviation.

    It lives in units where a bounded dimension is -1 .. 1; the environment gets the action scaled
    to its bounds and clipped to them, the log probability is of the unclipped one.
    """

    def __init__(self, space: spaces.Box, width: int) -> None:
        super().__init__()
        self.space = space
        self.action_shape: tuple[int, ...] = (int(np.prod(space.shape)),)
        self.action_dtype = torch.float32
        self.encoded_width = self.action_shape[0]
        self.output = nn.Linear(width, self.encoded_width)
        self.log_std = nn.Parameter(torch.zeros(self.encoded_width))

    def forward(self, features: Tensor, mask: Tensor | None) -> Float[Tensor, "*batch n"]:
        """Means, then log deviations."""
        assert mask is None, "a continuous action has no mask"
        mean = self.output(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1).to(self.log_std.dtype)

    def noise(self, num_rows: int, generator: torch.Generator) -> Float[Tensor, "B n"]:
        """What `sample` makes random: normal."""
        shape = (num_rows, self.encoded_width)
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, noise: Tensor | None) -> Tensor:
        """Mean plus deviation times noise; without it, the mean."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean if noise is None else mean + log_std.exp() * noise

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """The sum over dimensions."""
        mean, log_std = parameters.chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        return normal.log_prob(action).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """The sum over dimensions."""
        mean, log_std = parameters.chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        return normal.entropy().sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """Itself, clipped to the units' range."""
        return action.clamp(-1, 1)

    def in_space(self, action: Tensor) -> Tensor:
        """Scaled to the bounds where there are any, and never past them by rounding."""
        low, high = (
            torch.as_tensor(x, device=action.device) for x in (self.space.low, self.space.high)
        )
        given = action.view(-1, *self.space.shape)
        span = high - low  # Of huge bounds infinite, too: there is nothing to scale by.
        scaled = low + (given.clamp(-1, 1) + 1) / 2 * span
        return torch.where(span.isfinite(), scaled, given).clamp(low, high)

    def to_env(self, action: Tensor) -> NDArray[np.generic]:
        """What the environment takes."""
        return self.in_space(action.cpu()).numpy().astype(self.space.dtype)


class ValueHead(nn.Module):
    """The value, predicted in units of the returns' own spread (PopArt).

    V = mean + deviation * output(features). `adapt` follows the mean and the deviation of the value
    targets and rewrites the weights so that no prediction changes (van Hasselt et al. 2016, arXiv
    1602.07714, eqs. 9 and 10). A loss divided by the deviation then weighs the same in every task,
    whatever the size of its rewards, beside the policy's loss in a torso that both share. The first
    targets only set the units: to keep what untrained weights predict would hand their noise, large
    beside small rewards, to the advantages.
    """

    RATE = 0.1
    """How far the statistics move to those of new targets: 0.1 per rollout forgets over ten."""
    MIN_DEVIATION = 1e-3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.mean: Tensor
        self.variance: Tensor
        self.num_updates: Tensor

    @property
    def deviation(self) -> Float[Tensor, ""]:
        """The targets' standard deviation; 1 before the first `adapt`."""
        return self.variance.sqrt().clamp(min=self.MIN_DEVIATION)

    def forward(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The values, in the rewards' units."""
        out = self.output(features)[..., 0]
        full = torch.promote_types(out.dtype, torch.float32)
        return self.mean.to(full) + self.deviation.to(full) * out.to(full)

    @torch.no_grad()
    def adapt(self, targets: Float[Tensor, " n"]) -> None:
        """Move the statistics towards those of new targets; predictions stay, but at first."""
        old_mean, old_deviation = self.mean.clone(), self.deviation.clone()
        mean, variance = targets.mean(), targets.var(correction=0)
        # Targets that are not finite stop the run later; the statistics stay as they are.
        finite = mean.isfinite() & variance.isfinite()
        mean = torch.where(finite, mean, old_mean)
        variance = torch.where(finite, variance, self.variance)
        is_first = self.num_updates == 0
        rate = torch.where(is_first, 1.0, self.RATE)
        # Of the mixture of old and new: both variances, and that between the two means.
        between = rate * (1 - rate) * (mean - old_mean).square()
        self.variance.copy_((1 - rate) * self.variance + rate * variance + between)
        self.mean.lerp_(mean.to(self.mean.dtype), rate)
        self.num_updates += finite
        scale = torch.where(is_first, 1.0, old_deviation / self.deviation)
        shift = torch.where(is_first, 0.0, (old_mean - self.mean) / self.deviation)
        self.output.weight.mul_(scale)
        self.output.bias.mul_(scale).add_(shift)


def build_head(space: gymnasium.Space[Any], width: int) -> CategoricalHead | GaussianHead:
    """The head that an action space calls for.

    Raises:
        ValueError: the space is none of Discrete, MultiDiscrete (one axis) and float Box.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space, width)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return CategoricalHead(space, width)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, width)
    raise ValueError(
        f"no head covers the action space {space}; covered are Discrete, MultiDiscrete and float "
        "Box: convert it with a gymnasium.ActionWrapper"
    )
