"""Encoders: one per leaf of the observation space, whose features are summed.

An observation is always a dict of tensors: the keys of a Dict space, or the one key "obs".
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtxl_rl.env_keys import ACTION_MASK_KEY

IMAGE_ENCODERS = ("cnn", "patches", "resnet")

_PATCH = 8

# Any leading axes, D width, C channels.


def observation_leaves(space: gymnasium.Space[Any]) -> dict[str, gymnasium.Space[Any]]:
    """Leaves of an observation space, without the action mask."""
    if not isinstance(space, spaces.Dict):
        return {"obs": space}
    leaves = {key: leaf for key, leaf in space.spaces.items() if key != ACTION_MASK_KEY}
    nested = [key for key, leaf in leaves.items() if isinstance(leaf, spaces.Dict | spaces.Tuple)]
    if nested:
        raise ValueError(
            f"observation keys {nested} are nested spaces; only flat Dict spaces are covered: "
            "flatten them with gymnasium.wrappers.FlattenObservation or an ObservationWrapper"
        )
    return leaves


def module_name(key: str) -> str:
    """A leaf's key as the name of its module: another one where torch forbids the key."""
    name = key.replace("%", "%25").replace(".", "%2E")
    return f"%{name}" if not name or hasattr(nn.ModuleDict(), name) else name


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Whether the space holds images: uint8 boxes of three axes."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an image shape is HWC: the channel axis is the shorter of first and last."""
    return shape[-1] <= shape[0]


def init_weights(encoder: nn.Module) -> None:
    """Initialise orthogonally with gain sqrt(2) and zero biases, which keeps the variance.

    torch's default shrinks it by about 0.4 per layer: features of Memory Maze's pictures had a
    standard deviation of 0.005, next to 0.2 of the previous action's.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, math.sqrt(2))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    for block in encoder.modules():
        if isinstance(block, _Residual):  # Start as the identity: six of them would add up.
            nn.init.zeros_(block.second.weight)


class ImageEncoder(nn.Module):
    """uint8 pixels, HWC or CHW, to D features; the one place that scales them to -1 .. 1."""

    def __init__(self, shape: tuple[int, ...], width: int, *, kind: str) -> None:
        super().__init__()
        self.channels_last = channels_last(shape)
        height, breadth, channels = shape if self.channels_last else (*shape[1:], shape[0])
        if kind == "resnet":
            self.convolutions: nn.Module = impala_resnet(channels)
        elif kind == "patches" and min(height, breadth) >= 2 * _PATCH:
            self.convolutions = patch_convolutions(channels)
        else:
            self.convolutions = small_cnn(channels, side=min(height, breadth))
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, channels, height, breadth)).numel()
        self.output = nn.Linear(size, width)
        init_weights(self)

    def forward(self, pixels: Tensor) -> Float[Tensor, "*batch D"]:
        """Encode pixels of any leading axes."""
        batch = pixels.shape[:-3]
        images = pixels.flatten(0, -4) if len(batch) > 1 else pixels
        if self.channels_last:
            images = images.movedim(-1, -3)
        # One copy, scaled in place: a minibatch of pictures is large, and each further copy of it
        # takes time and memory.
        scaled = images.to(self.output.weight.dtype, copy=True).div_(127.5).sub_(1.0)
        features = self.convolutions(scaled)
        out: Tensor = self.output(torch.relu(features.flatten(1)))
        return out.unflatten(0, batch) if len(batch) > 1 else out


def small_cnn(channels: int, *, side: int) -> nn.Module:
    """The convolutions of Mnih et al. 2015, or two of 3x3 for images smaller than 36 pixels."""
    if side < 36:
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1),
        )
    return nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3),
    )


def patch_convolutions(channels: int) -> nn.Module:
    """Disjoint patches of 8x8 pixels, then one convolution: a quarter of `small_cnn`'s operations.

    The first layer is the patch embedding of vision transformers (Dosovitskiy et al. 2021, arXiv
    2010.11929).
    """
    return nn.Sequential(
        nn.Conv2d(channels, 32, _PATCH, stride=_PATCH),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.second(torch.relu(self.first(torch.relu(x)))))


def impala_resnet(channels: int) -> nn.Module:
    """The residual network of IMPALA (Espeholt et al. 2018, figure 3, right): 16, 32, 32."""
    layers: list[nn.Module] = []
    for out in (16, 32, 32):
        layers += [
            nn.Conv2d(channels, out, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            _Residual(out),
            _Residual(out),
        ]
        channels = out
    return nn.Sequential(*layers)


class VectorEncoder(nn.Module):
    """Numbers of any shape, flattened, through one hidden layer."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.num_axes = len(shape)
        self.first = nn.Linear(math.prod(shape), width)
        self.second = nn.Linear(width, width)
        init_weights(self)

    def forward(self, numbers: Tensor) -> Float[Tensor, "*batch D"]:
        """Encode numbers of any leading axes."""
        numbers = numbers.to(self.first.weight.dtype)
        batch = numbers.shape[: numbers.ndim - self.num_axes]
        out: Tensor = self.second(torch.relu(self.first(numbers.reshape(*batch, -1))))
        return out


class DiscreteEncoder(nn.Module):
    """Sum of one embedding per component; with several components, followed by one more layer.

    Several embeddings start with a standard deviation of 3, because one component among many may
    decide, such as the object in one cell of a grid. Relative to Adam's steps such tables change
    little, and the layer after them learns fast. A policy that imitates MiniGrid-Memory's turns
    learns them in 100 to 160 updates. With a deviation of 1 it needs 270, or more than 300.
    """

    def __init__(self, num_choices: list[int], width: int, *, start: list[int]) -> None:
        super().__init__()
        offsets = np.cumsum([0, *num_choices[:-1]]) - np.asarray(start)
        self.register_buffer("offsets", torch.as_tensor(offsets), persistent=False)
        self.offsets: Tensor
        self.table = nn.EmbeddingBag(sum(num_choices), width, mode="sum")
        is_single = len(num_choices) == 1
        nn.init.normal_(self.table.weight, std=1.0 if is_single else 3.0)
        self.output = (
            nn.Identity() if is_single else nn.Sequential(nn.ReLU(), nn.Linear(width, width))
        )
        init_weights(self.output)

    def forward(self, choices: Tensor) -> Float[Tensor, "*batch D"]:
        """Encode choices [..., components]."""
        batch = choices.shape[:-1]
        rows = (choices + self.offsets).flatten(0, -2)
        out: Tensor = self.output(self.table(rows)).unflatten(0, batch)
        return out


class StepEncoder(nn.Module):
    """A step's number in its episode, as sines and cosines (Vaswani et al. 2017).

    The periods are powers of two, from 4 to 131,072 steps, so that angles are exact at any step.
    """

    NUM_PERIODS = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(2 * self.NUM_PERIODS, width)
        init_weights(self)

    def forward(self, step: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Encode steps of any leading axes."""
        periods = 4 << torch.arange(self.NUM_PERIODS, device=step.device)
        phase = (step[..., None] % periods).to(self.output.weight.dtype) / periods
        angle = 2 * math.pi * phase
        out: Tensor = self.output(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return out


class LeafEncoder(nn.Module):
    """The encoder of one space."""

    def __init__(self, space: gymnasium.Space[Any], width: int, *, image: str, key: str) -> None:
        super().__init__()
        self.unsqueeze = isinstance(space, spaces.Discrete)
        if isinstance(space, spaces.Discrete):
            start = [int(space.start)]
            self.encoder: nn.Module = DiscreteEncoder([int(space.n)], width, start=start)
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            nvec, start = space.nvec.tolist(), space.start.tolist()
            self.encoder = DiscreteEncoder(nvec, width, start=start)
        elif is_image(space) and space.shape is not None:
            self.encoder = ImageEncoder(space.shape, width, kind=image)
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            self.encoder = VectorEncoder(space.shape, width)
        else:
            raise ValueError(
                f"no encoder covers the observation {key!r} of space {space}; Box, Discrete, "
                "MultiDiscrete, MultiBinary and a Dict of them are covered: convert it with a "
                "gymnasium.ObservationWrapper"
            )

    def forward(self, leaf: Tensor) -> Float[Tensor, "*batch D"]:
        """Encode one leaf."""
        out: Tensor = self.encoder(leaf[..., None] if self.unsqueeze else leaf)
        return out


class ObservationEncoder(nn.Module):
    """The sum of the leaves' features."""

    def __init__(self, space: gymnasium.Space[Any], width: int, *, image: str) -> None:
        super().__init__()
        leaves = observation_leaves(space)
        self.names = {key: module_name(key) for key in leaves}
        self.leaves = nn.ModuleDict({
            self.names[key]: LeafEncoder(leaf, width, image=image, key=key)
            for key, leaf in leaves.items()
        })  # fmt: skip

    def forward(self, observation: Mapping[str, Tensor]) -> Float[Tensor, "*batch D"]:
        """Features of an observation with any leading axes."""
        features = [self.leaves[name](observation[key]) for key, name in self.names.items()]
        return torch.stack(features).sum(0)
