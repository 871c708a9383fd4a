"""Action distributions and the value head.

Inside the library a discrete action is an integer tensor [..., components] (one component for
Discrete), a continuous one a float tensor [..., dimensions] in units where the space is -1 .. 1.
"""

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from mtxl_rl.agents.running_moments import RunningMoments


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
        self.encoded_width = self.num_parameters = sum(self.num_choices)
        self.output = nn.Linear(width, self.encoded_width)

    def forward(self, features: Tensor, mask: Tensor | None) -> Float[Tensor, "*batch n"]:
        """Log-probabilities of every component's choices, concatenated."""
        logits = self.output(features).float() if features.dtype != torch.float64 else (
            self.output(features))  # fmt: skip
        return self.normalise(logits, mask)

    def normalise(self, logits: Tensor, mask: Tensor | None = None) -> Float[Tensor, "*batch n"]:
        """Log-probabilities from logits of any offset."""
        if mask is not None:
            logits = logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min / 4)
        return torch.cat([part.log_softmax(-1) for part in self._parts(logits)], dim=-1)

    def temper(self, parameters: Tensor, temperature: float) -> Float[Tensor, "*batch n"]:
        """The distribution with probabilities proportional to p^(1 / temperature)."""
        return self.normalise(parameters / temperature)

    def kl(self, parameters: Tensor, other: Tensor) -> Float[Tensor, "*batch"]:
        """KL(parameters || other): the sum over components."""
        return (parameters.exp() * (parameters - other)).sum(-1)

    def squared_error(self, parameters: Tensor, other: Tensor) -> Float[Tensor, "*batch"]:
        """Squared differences of the probabilities, summed."""
        return (parameters.exp() - other.exp()).square().sum(-1)

    def noise(self, num_rows: int, generator: torch.Generator) -> Float[Tensor, "B n"]:
        """Noise for `sample`: uniform in 0 .. 1."""
        shape = (num_rows, self.encoded_width)
        return torch.rand(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, noise: Tensor | None) -> Tensor:
        """Gumbel-max: the argmax of log-probabilities plus Gumbel noise; without noise, the argmax.

        No host-device synchronisation and no random numbers inside, so that it compiles.
        """
        if noise is not None:
            parameters = parameters - (-noise.clamp(1e-20, 1 - 1e-7).log()).log()
        return torch.stack([part.argmax(-1) for part in self._parts(parameters)], dim=-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability of the action: the sum over components."""
        parts = zip(self._parts(parameters), action.split(1, dim=-1), strict=True)
        return torch.cat([part.gather(-1, choice) for part, choice in parts], dim=-1).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy: the sum over components."""
        return -(parameters.exp() * parameters).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """One-hot vectors of the components, concatenated."""
        # torch's one_hot reads the choices first, which synchronises.
        hot = [
            choice == torch.arange(size, device=action.device)
            for choice, size in zip(action.split(1, dim=-1), self.num_choices, strict=True)
        ]
        return torch.cat(hot, dim=-1).long()

    def in_space(self, action: Tensor) -> Tensor:
        """The action in the environment's action space: integers counted from the space's start."""
        chosen = action + torch.as_tensor(self.start, device=action.device)
        return chosen[..., 0] if self.is_single else chosen

    def to_env(self, action: Tensor) -> NDArray[np.generic]:
        """The action as the environment takes it."""
        array: NDArray[np.generic] = self.in_space(action.cpu()).numpy()
        return array

    def _parts(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return parameters.split(self.num_choices, dim=-1)


class GaussianHead(nn.Module):
    """Box: a diagonal Gaussian with a learned, state-independent deviation.

    Its units are those in which a bounded dimension is -1 .. 1. The environment gets the action
    scaled to its bounds and clipped to them; the log-probability is that of the unclipped action.
    """

    def __init__(self, space: spaces.Box, width: int) -> None:
        super().__init__()
        self.space = space
        self.action_shape: tuple[int, ...] = (int(np.prod(space.shape)),)
        self.action_dtype = torch.float32
        self.encoded_width = self.action_shape[0]
        self.num_parameters = 2 * self.encoded_width
        self.output = nn.Linear(width, self.encoded_width)
        self.log_std = nn.Parameter(torch.zeros(self.encoded_width))

    def forward(self, features: Tensor, mask: Tensor | None) -> Float[Tensor, "*batch n"]:
        """Means and log standard deviations, concatenated."""
        assert mask is None, "a continuous action has no mask"
        mean = self.output(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1).to(self.log_std.dtype)

    def noise(self, num_rows: int, generator: torch.Generator) -> Float[Tensor, "B n"]:
        """Noise for `sample`: standard normal."""
        shape = (num_rows, self.encoded_width)
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, parameters: Tensor, noise: Tensor | None) -> Tensor:
        """Mean plus standard deviation times noise; without noise, the mean."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean if noise is None else mean + log_std.exp() * noise

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability of the action: the sum over dimensions."""
        return self._normal(parameters).log_prob(action).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy: the sum over dimensions."""
        return self._normal(parameters).entropy().sum(-1)

    def temper(self, parameters: Tensor, temperature: float) -> Float[Tensor, "*batch n"]:
        """The distribution with a density proportional to p^(1 / temperature)."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return torch.cat([mean, log_std + 0.5 * math.log(temperature)], dim=-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Float[Tensor, "*batch"]:
        """KL(parameters || other): the sum over dimensions."""
        mean, log_std = parameters.chunk(2, dim=-1)
        other_mean, other_log_std = other.chunk(2, dim=-1)
        log_ratio = other_log_std - log_std
        scaled = ((mean - other_mean) / other_log_std.exp()).square()
        return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + scaled - 1)).sum(-1)

    def squared_error(self, parameters: Tensor, other: Tensor) -> Float[Tensor, "*batch"]:
        """Squared differences of the means, summed."""
        mean, other_mean = parameters.chunk(2, dim=-1)[0], other.chunk(2, dim=-1)[0]
        return (mean - other_mean).square().sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """The action clipped to -1 .. 1."""
        return action.clamp(-1, 1)

    def in_space(self, action: Tensor) -> Tensor:
        """The action scaled to the space's bounds, if it has any; rounding never exceeds them."""
        low, high = (
            torch.as_tensor(x, device=action.device) for x in (self.space.low, self.space.high)
        )
        shaped = action.view(-1, *self.space.shape)
        span = high - low  # Infinite for huge bounds too; those are not scaled.
        scaled = low + (shaped.clamp(-1, 1) + 1) / 2 * span
        return torch.where(span.isfinite(), scaled, shaped).clamp(low, high)

    def to_env(self, action: Tensor) -> NDArray[np.generic]:
        """The action as the environment takes it."""
        return self.in_space(action.cpu()).numpy().astype(self.space.dtype)

    def _normal(self, parameters: Tensor) -> torch.distributions.Normal:
        mean, log_std = parameters.chunk(2, dim=-1)
        return torch.distributions.Normal(mean, log_std.exp(), validate_args=False)


class ValueHead(RunningMoments):
    """Value estimate in units of the returns' standard deviation (PopArt).

    V = mean + deviation * output(features). `update_statistics` follows mean and deviation of the
    value targets and rewrites the weights so that no prediction changes (van Hasselt et al. 2016,
    arXiv 1602.07714, eqs. 9 and 10). A loss divided by the deviation then weighs the same relative
    to the policy loss in every task, whatever the size of its rewards; both share the torso.
    """

    MIN_DEVIATION = 1e-3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, 1)

    def forward(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Value estimates, in the units of the rewards."""
        out = self.output(features)[..., 0]
        full = torch.promote_types(out.dtype, torch.float32)
        return self.mean.to(full) + self.deviation.to(full) * out.to(full)

    @torch.no_grad()
    def update_statistics(self, mean: Float[Tensor, ""], variance: Float[Tensor, ""]) -> None:
        """Move the statistics towards those of new targets, and keep every prediction.

        The first update does change predictions: keeping what untrained weights predict would pass
        their noise, large relative to small rewards, to the advantages.
        """
        old_mean, old_deviation = self.mean.clone(), self.deviation.clone()
        is_first = self.num_updates == 0
        super().update_statistics(mean, variance)
        scale = torch.where(is_first, 1.0, old_deviation / self.deviation)
        shift = torch.where(is_first, 0.0, (old_mean - self.mean) / self.deviation)
        self.output.weight.mul_(scale)
        self.output.bias.mul_(scale).add_(shift)


def build_head(space: gymnasium.Space[Any], width: int) -> CategoricalHead | GaussianHead:
    """The head of an action space.

    Raises:
        ValueError: the space is not one of Discrete, MultiDiscrete (one axis) and float Box.
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
