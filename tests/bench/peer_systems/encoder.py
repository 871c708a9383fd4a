"""The encoder of systems whose users write one themselves: a linear map or a Nature CNN."""

import torch
from torch import Tensor, nn

from peer_systems.turns import PacedEnv


class Encoder(nn.Module):
    """Vectors [*, features] or pictures [*, height, width, channels] to [*, width]."""

    def __init__(self, env: PacedEnv, width: int) -> None:
        super().__init__()
        self.shape = env.single_observation_space.shape
        self.is_image = env.is_image
        if not self.is_image:
            self.layers = nn.Sequential(nn.Linear(self.shape[0], width), nn.ReLU())
            return
        height, columns, channels = self.shape
        convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        size = convolutions(torch.zeros(1, channels, height, columns)).shape[1]
        self.layers = nn.Sequential(*convolutions, nn.Linear(size, width), nn.ReLU())

    def forward(self, observation: Tensor) -> Tensor:
        """Features of the observations."""
        leading = observation.shape[: observation.ndim - len(self.shape)]
        x = observation.reshape(-1, *self.shape).float()
        if self.is_image:
            x = x.permute(0, 3, 1, 2) / 255
        return self.layers(x).reshape(*leading, -1)
