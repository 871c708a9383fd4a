"""This library: `options.torso` is the torso, `options.compile` whether it is compiled."""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch

import mtxl_rl
from mtxl_rl.agents.transition import PolicyInputs, to_tensors
from mtxl_rl.config import TrainConfig
from mtxl_rl.training.run import Run
from peer_systems.turns import PacedEnv, System, run


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """A run; where speed is compared, without an early stop, which would save the peers' time."""
    target_kl = config.ppo.target_kl if options.until is not None else 0.0
    config = replace(config, stagger_steps=0, ppo=replace(config.ppo, target_kl=target_kl))
    training = Run(config, env)  # type: ignore[arg-type]
    policy, actor = training.policy, training.actor

    def train() -> None:
        training.start(seed=None)
        while True:
            training.iterate()

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        cache = policy.prefill(policy.torso.initial_state(rows))
        head, action = policy.action_head, policy.initial_action(rows)
        reward, is_first = torch.zeros(rows), torch.zeros(rows, dtype=torch.bool)

        def step() -> object:
            leaves = to_tensors({"obs": observation}, actor.shapes, actor.device)
            inputs = PolicyInputs(leaves, action, reward, is_first)
            noise = head.noise(rows, training.generator)
            return head.to_env(policy.act(inputs, cache, noise).action)

        return step

    network = f"{options.torso}, compiled" if options.compile else options.torso
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    return System(f"mtxl_rl {mtxl_rl.__version__}, {network}", parameters, train, act)


if __name__ == "__main__":
    run(build)
