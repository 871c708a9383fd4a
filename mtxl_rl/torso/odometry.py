"""Odometry: the way that an agent has moved since its episode started, as an input of the torso.

A sum over hundreds of steps is learned slowly by a memory, and is simple to compute. So the
movement of each step is estimated from the features of two steps, and movements are added up to a
pose (path integration, dead reckoning).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

# B rows, T steps, D width, O = D + 3 carried numbers.


class Odometry(nn.Module):
    """Estimates movements in a plane, and adds an embedding of their sum to the features.

    A movement is (right, ahead, turn): the vector back to the place of the step before, in the
    agent's axes, and the angle in radians by which the agent has turned left. A pose is the same
    relative to the episode's start, in the axes of the agent there: (x, y, heading). The units of
    length are those of the numbers that train `movements`. Nothing else does: no gradient reaches
    them from the pose, because that of a sum over all steps of a span would drown it.

    A row carries the features of its last step and the pose after it; zeros where an episode
    starts.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.movement_hidden = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
        )
        self.movement = nn.Linear(2 * width, 3)
        self.embedding = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
        nn.init.orthogonal_(self.movement.weight, 0.01)
        nn.init.zeros_(self.movement.bias)

    @property
    def num_carried(self) -> int:
        """Numbers that a row carries from step to step, O."""
        return self.width + 3

    def movements(
        self,
        x: Float[Tensor, "B T D"],
        carried: Float[Tensor, "B O"],
        is_first: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T 3"]:
        """The movement of each step; zero where an episode starts."""
        before = torch.cat([carried[:, None, : self.width].to(x.dtype), x[:, :-1]], dim=1)
        steps = torch.cat([before, x], dim=-1).to(self.movement.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            movement: Tensor = self.movement(self.movement_hidden(steps))
        return movement.masked_fill(is_first[..., None], 0)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        carried: Float[Tensor, "B O"],
        is_first: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B O"]]:
        """The features with the pose's embedding added, and what the next step needs."""
        with torch.no_grad():
            movement = self.movements(x, carried, is_first).to(carried.dtype)
        pose = add_up(movement, carried[:, self.width :], is_first)
        place, heading = pose[..., :2], pose[..., 2:]
        numbers = torch.cat([place, heading.sin(), heading.cos()], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embedding(numbers.to(self.movement.weight.dtype))
        after = torch.cat([x[:, -1].to(carried.dtype), pose[:, -1]], dim=-1)
        return x + embedding.to(x.dtype), after


def turn_since(direction: Float[Tensor, "*batch two"]) -> Float[Tensor, "*batch"]:
    """The turn to the left since a direction, (right, ahead) in the agent's axes, was ahead."""
    return torch.atan2(direction[..., 0], direction[..., 1])


def add_up(
    movement: Float[Tensor, "B T 3"], pose: Float[Tensor, "B 3"], is_first: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T 3"]:
    """The pose after each step, from that before them; zero where an episode starts.

    A product of rigid motions: headings are sums of turns, and places are sums of movements in the
    axes of the start.
    """
    step = torch.arange(is_first.shape[1], device=is_first.device)
    start = torch.where(is_first, step, -1)
    if len(step) > 1:  # ONNX has no cummax, and a single step needs none.
        start = start.cummax(dim=1).values

    def sum_since_start(change: Tensor, before: Tensor) -> Tensor:
        total = change.cumsum(dim=1)
        at_start = total.gather(1, start.clamp(min=0))
        return total + torch.where(start < 0, before[:, None], -at_start)

    right, ahead, turn = movement.unbind(-1)
    heading = sum_since_start(turn, pose[:, 2])
    # The same direction, from -pi to pi: a large angle would have fewer digits.
    heading = torch.atan2(heading.sin(), heading.cos())
    x = sum_since_start(heading.sin() * ahead - heading.cos() * right, pose[:, 0])
    y = sum_since_start(-heading.sin() * right - heading.cos() * ahead, pose[:, 1])
    return torch.stack([x, y, heading], dim=-1)
