"""The average of a policy's weights over its last iterations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """An exponential average of weights (Polyak and Juditsky 1992; PPO-EMA, arXiv 2110.00641).

    The first iterations are averaged evenly, so that it does not lean to the start.

    Args:
        num_iterations: Each iteration's weights move the average by one part in this many.
    """

    def __init__(self, num_iterations: int) -> None:
        self.num_iterations = num_iterations
        self.num_updates = 0
        self.weights = dict[str, Tensor]()
        """By their names in the policy; empty before the first update."""

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move the average towards the weights after an iteration. Counts are copied."""
        self.num_updates += 1
        rate = 1 / min(self.num_updates, self.num_iterations)
        if not self.weights:
            self.weights = {name: weight.clone() for name, weight in weights.items()}
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(weights[name], rate)
            else:
                average.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs."""
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """Restore a state of `state_dict`."""
        self.num_updates = state["num_updates"]
        self.weights = {
            name: weight.to(device, copy=True) for name, weight in state["weights"].items()
        }
