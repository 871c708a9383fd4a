"""Parts made from a configuration: policy, sizes, bytes. Nothing here steps environments."""

from collections.abc import Mapping
from typing import Any

import torch

from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.rollout import Rollout, RolloutShape
from mtxl_rl.agents.transition import Shapes
from mtxl_rl.config import TrainConfig


def build_policy(config: TrainConfig, env: Any, device: torch.device) -> Policy:  # noqa: ANN401
    """The policy on a device, for the spaces of `env`: a vector environment, or a `SavedAgent`."""
    policy = Policy(
        env.single_observation_space,
        env.single_action_space,
        torso=config.torso,
        policy=config.policy.for_device(device),
        critic=config.critic,
        auxiliary=config.auxiliary,
    )
    return policy.to(device)


def rollout_shape(
    config: TrainConfig, observation: Shapes, policy: Policy, *, num_envs: int
) -> RolloutShape:
    """Sizes of the run's rollouts in a process of `num_envs` environments."""
    state = policy.torso.initial_state(1)
    head = policy.action_head
    return RolloutShape(
        num_envs=num_envs,
        num_steps=config.ppo.rollout_length,
        span_length=config.span_length,
        observation=observation,
        action=(head.action_shape, head.action_dtype),
        num_layers=state.window.shape[1],
        window_length=state.window.shape[2],
        width=state.window.shape[3],
        memory_shape=tuple(state.long_term.shape[1:]),
        odometry_width=state.odometry.shape[1],
        memory_dtype=state.long_term.dtype,
        teacher_width=head.num_parameters if config.teacher.policy else 0,
    )


def predicted_bytes(config: TrainConfig, env: Any) -> dict[str, int]:  # noqa: ANN401
    """Bytes of the buffer's parts, the weights, and the optimiser, before any is allocated."""
    with torch.device("meta"):
        policy = build_policy(config, env, torch.device("meta"))
        observation = policy.input_shapes(is_training=True)
        shape = rollout_shape(config, observation, policy, num_envs=config.num_envs)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    rollout = Rollout(shape, device="meta")
    return {**rollout.nbytes_by_part(), "model": weights, "gradients + Adam": 3 * weights}


def bytes_table(parts: Mapping[str, int]) -> str:
    """One line per part, in MB."""
    rows = [*parts.items(), ("total", sum(parts.values()))]
    return "\n".join(f"{name:<18}{count / 1e6:>12.3f} MB" for name, count in rows)
