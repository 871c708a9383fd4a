"""Measures how far the pose of an agent's odometry is from the true one."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.decoders import MovementDecoder
from mtxl_rl.torso.odometry import add_up, turn_since

# B environments.

ENDS = (16, 64, 256, 1024)
"""Steps since an episode's start at which a range of them ends."""


class PoseError(NamedTuple):
    """Root mean square errors of the pose, by the steps since the episode's start."""

    steps: str
    num_compared: int
    heading: float
    """In radians."""
    place: float
    """In the units of the leaves of `auxiliary.movement`."""


class PoseErrors:
    """Compares poses at every step of an evaluation, with the sum of the true movements.

    Args:
        decoder: Of the policy; it names the leaves of the true movements.
    """

    def __init__(self, decoder: MovementDecoder) -> None:
        self.decoder = decoder
        self._true: Tensor | None = None
        self._steps = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((len(ENDS) + 1, 3))

    def observe(self, actor: Actor) -> None:
        """Compare after the actor's last step, and add the movement that its inputs show."""
        assert actor.cache is not None
        inputs = actor.inputs()
        if self._true is None:
            self._true = torch.zeros(len(inputs.is_first), 3, dtype=torch.float64)
        else:
            self._add(actor.cache.odometry[:, -3:].double().cpu(), self._true)
        place, direction = (inputs.observation[key].double().cpu() for key in self.decoder.keys)
        movement = torch.cat([place, turn_since(direction)[:, None]], dim=-1)
        is_first = inputs.is_first.cpu()[:, None]
        self._true = add_up(movement[:, None], self._true, is_first)[:, 0]
        self._steps = actor.episode_step.copy()

    def _add(self, estimated: Tensor, true: Tensor) -> None:
        turn = estimated[:, 2] - true[:, 2]
        heading = torch.atan2(turn.sin(), turn.cos()).square()
        # Both places as seen by the agent: a wrong heading puts the start elsewhere.
        place = (_way_back(estimated) - _way_back(true)).square().sum(-1)
        terms = torch.stack([torch.ones_like(heading), heading, place], dim=-1).numpy()
        np.add.at(self._sums, np.searchsorted(ENDS, self._steps), terms)

    def results(self) -> list[PoseError]:
        """One for each range of steps that was reached."""
        bounds = zip((0, *ENDS), (*ENDS, None), strict=True)
        labels = [f"{low + 1}-{high or ''}" for low, high in bounds]
        return [
            PoseError(label, int(count), float(heading / count) ** 0.5, float(place / count) ** 0.5)
            for label, (count, heading, place) in zip(labels, self._sums, strict=True)
            if count
        ]


def _way_back(pose: Tensor) -> Tensor:
    """The vector to the start, (right, ahead) in the agent's axes, of poses [B, 3]."""
    x, y, heading = pose.unbind(-1)
    sin, cos = heading.sin(), heading.cos()
    return torch.stack([-x * cos - y * sin, x * sin - y * cos], dim=-1)
