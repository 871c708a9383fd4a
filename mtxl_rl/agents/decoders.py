"""Decoders: predict observations from the torso's output, as an auxiliary loss.

Rare rewards carry little information about what to remember; the observation is there at every
step. Memory Gym's Transformer-XL learned its tasks with this loss and not without it (Pleines et
al. 2025, JMLR 26, section 5).
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mtxl_rl.agents.encoders import (
    channels_last,
    is_image,
    module_name,
    observation_leaves,
)
from mtxl_rl.agents.running_moments import RunningMoments
from mtxl_rl.agents.world import World, masked_moments

# Any leading axes, D width.

_BLOCK = 8
"""Growth of an image's side: three transposed convolutions double it."""


class ImageDecoder(nn.Module):
    """Pixels in 0 .. 1, with the binary cross-entropy."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.channels_last = channels_last(shape)
        height, breadth, channels = shape if self.channels_last else (*shape[1:], shape[0])
        self.size = (height, breadth)
        self.start = (32, math.ceil(height / _BLOCK), math.ceil(breadth / _BLOCK))
        self.input = nn.Linear(width, math.prod(self.start))
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, channels, 4, stride=2, padding=1),
        )

    def forward(self, features: Float[Tensor, "n D"], pixels: Tensor) -> Float[Tensor, " n"]:
        """Mean loss over each step's pixels."""
        images = pixels.movedim(-1, -3) if self.channels_last else pixels
        logits = self.convolutions(self.input(features).unflatten(1, self.start))
        height, breadth = self.size
        logits = logits[..., :height, :breadth].float()
        loss = functional.binary_cross_entropy_with_logits(
            logits, images.to(logits.dtype) / 255.0, reduction="none"
        )
        return loss.flatten(1).mean(1)


class VectorDecoder(RunningMoments):
    """Numbers, with the squared error in units of each number's standard deviation.

    The error of predicting the mean is 1, so that 1 - error is the share of the variance that the
    features explain (R^2).
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__(math.prod(shape))
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, math.prod(shape))
        )

    def forward(self, features: Float[Tensor, "n D"], numbers: Tensor) -> Float[Tensor, " n"]:
        """Mean loss over each step's numbers."""
        target = (numbers.flatten(1).float() - self.mean) / self.deviation
        return (self.layers(features).float() - target).square().mean(1)

    def predict(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n numbers"]:
        """The predicted numbers, flattened."""
        prediction: Tensor = self.layers(features).float() * self.deviation + self.mean
        return prediction


class MovementDecoder(nn.Module):
    """Movements of the torso's odometry as two leaves, with the losses of `VectorDecoder`.

    Args:
        place: leaf of the vector to the place of the step before, [right, ahead].
        direction: leaf of the unit vector of the direction of then, likewise.
    """

    def __init__(self, place: str, direction: str) -> None:
        super().__init__()
        self.keys = (place, direction)
        self.place, self.direction = RunningMoments(2), RunningMoments(2)

    def losses(
        self, movement: Float[Tensor, "*batch 3"], observation: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "*batch"]]:
        """Each leaf's loss per step."""
        turn = movement[..., 2]
        # After a turn to the left, the direction of before lies to the right.
        predictions = movement[..., :2], torch.stack([turn.sin(), turn.cos()], dim=-1)
        losses = {}
        parts = zip(self.keys, predictions, (self.place, self.direction), strict=True)
        for key, prediction, moments in parts:
            error = (observation[key].to(prediction.dtype) - prediction) / moments.deviation
            losses[key] = error.square().mean(-1)
        return losses

    def update_statistics(
        self, observation: Mapping[str, Tensor], valid: Bool[Tensor, "B T"], world: World
    ) -> None:
        """Move the units of the losses towards those of a rollout."""
        place, direction = masked_moments([observation[key] for key in self.keys], valid, world)
        self.place.update_statistics(*place)
        self.direction.update_statistics(*direction)


class ChoiceDecoder(nn.Module):
    """Choices, with the cross-entropy of each component."""

    def __init__(self, num_choices: list[int], width: int, *, start: list[int]) -> None:
        super().__init__()
        self.output = nn.Linear(width, sum(num_choices))
        most = max(num_choices)
        sizes, steps = torch.tensor(num_choices)[:, None], torch.arange(most)
        first = sizes.cumsum(0) - sizes
        # Gathers the components' logits as rows of equal length; `padding` marks the unused ones.
        self.register_buffer("index", first + torch.minimum(steps, sizes - 1), persistent=False)
        self.register_buffer("padding", steps >= sizes, persistent=False)
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.index: Tensor
        self.padding: Tensor
        self.start: Tensor

    def forward(self, features: Float[Tensor, "n D"], choices: Tensor) -> Float[Tensor, " n"]:
        """Mean loss over each step's components."""
        choices = (choices.reshape(len(features), -1) - self.start).long()
        logits = self.output(features).float()[:, self.index].masked_fill(self.padding, -torch.inf)
        chosen = logits.log_softmax(-1).gather(-1, choices[..., None])
        return -chosen[..., 0].mean(1)


class ObservationDecoder(nn.Module):
    """One decoder per leaf of the observation space."""

    def __init__(self, space: gymnasium.Space[Any], width: int) -> None:
        super().__init__()
        leaves = observation_leaves(space)
        self.names = {key: module_name(key) for key in leaves}
        self.leaves = nn.ModuleDict({
            self.names[key]: _decoder(leaf, width) for key, leaf in leaves.items()
        })  # fmt: skip

    def losses(
        self, features: Float[Tensor, "*batch D"], observation: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "*batch"]]:
        """Each leaf's loss per step; the leading axes of both arguments are the same."""
        batch = features.shape[:-1]
        flat = features.flatten(0, -2)
        return {
            key: self.leaves[name](flat, observation[key].flatten(0, len(batch) - 1)).unflatten(
                0, batch
            )
            for key, name in self.names.items()
        }

    @property
    def vectors(self) -> dict[str, VectorDecoder]:
        """The decoders of leaves whose loss is 1 - R^2."""
        leaves = {key: self.leaves[name] for key, name in self.names.items()}
        return {key: leaf for key, leaf in leaves.items() if isinstance(leaf, VectorDecoder)}

    def update_statistics(
        self, observation: Mapping[str, Tensor], valid: Bool[Tensor, "B T"], world: World
    ) -> None:
        """Move the units of the vectors' losses towards those of a rollout."""
        numbers = [
            leaf.flatten(2) if leaf.ndim > 2 else leaf[..., None]
            for leaf in (observation[key] for key in self.vectors)
        ]
        moments = masked_moments(numbers, valid, world)
        for decoder, leaf_moments in zip(self.vectors.values(), moments, strict=True):
            decoder.update_statistics(*leaf_moments)


def _decoder(space: gymnasium.Space[Any], width: int) -> nn.Module:
    """The decoder of a space that `LeafEncoder` covers."""
    if isinstance(space, spaces.Discrete):
        return ChoiceDecoder([int(space.n)], width, start=[int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return ChoiceDecoder(space.nvec.tolist(), width, start=space.start.tolist())
    assert space.shape is not None
    decoder = ImageDecoder if is_image(space) else VectorDecoder
    return decoder(space.shape, width)
