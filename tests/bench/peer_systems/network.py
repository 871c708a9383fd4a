"""A recurrent network alone: outputs for given inputs, and gradients of a sum of squares."""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mtxl_rl.config import TrainConfig
from peer_systems.turns import System, Turns


def network_system(
    title: str,
    network: nn.Module,
    options: argparse.Namespace,
    config: TrainConfig,
    turns: Turns,
    *,
    forward: Callable[[Tensor, Tensor], Tensor],
    start: Callable[[int], Callable[[Tensor], Tensor]],
) -> System:
    """A system that learns from random inputs as often as a run learns from its rollouts.

    Args:
        title: name, version and network.
        network: its parameters are trained.
        options: sizes.
        config: sizes of PPO.
        turns: of this process.
        forward: outputs [B, T, width] for inputs [B, T, width] and `is_first` [B, T].
        start: returns a step from inputs [B, width] to outputs, with a state of so many rows.
    """
    ppo = config.ppo
    shape = (config.num_envs // ppo.num_minibatches, ppo.rollout_length)
    optimizer = torch.optim.Adam(network.parameters(), lr=ppo.learning_rate)

    def train() -> None:
        while True:
            for _ in range(ppo.num_epochs * ppo.num_minibatches):
                is_first = torch.rand(shape) < 1 / max(config.steps_to_stagger, 1)
                y = forward(torch.randn(*shape, options.width), is_first)
                optimizer.zero_grad()
                y.square().mean().backward()
                optimizer.step()
            turns.num_steps = ppo.rollout_length
            turns.wait()

    def act(rows: int) -> Callable[[], object]:
        inputs = np.random.default_rng(0).normal(size=(rows, options.width)).astype(np.float32)
        step = start(rows)

        @torch.no_grad()
        def outputs() -> object:
            return step(torch.as_tensor(inputs)).numpy()

        return outputs

    return System(title, sum(p.numel() for p in network.parameters()), train, act)
