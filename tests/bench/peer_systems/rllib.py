"""RLlib's PPO with its LSTM (one layer), sampling and learning in one process."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import TransformObservation
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune import register_env

from mtxl_rl.config import TrainConfig
from peer_systems.turns import PacedEnv, System, run


def float_pictures(env: PacedEnv) -> VectorEnv[Any, Any, Any]:
    """The environments with pictures of float32 in [0, 1], which RLlib's networks ask for."""
    if not env.is_image:
        return env
    space = spaces.Box(0, 1, env.single_observation_space.shape, np.float32)
    return TransformObservation(
        env, lambda pictures: pictures.astype(np.float32) / 255,
        observation_space=batch_space(space, env.num_envs), single_observation_space=space,
    )  # fmt: skip


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The algorithm; it does not count reset rows, so its rollouts are a little longer."""
    steps = env.num_envs * config.ppo.rollout_length
    env.steps_per_iteration = None
    register_env("paced", lambda _: float_pictures(PacedEnv.instance))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    model = DefaultModelConfig(
        use_lstm=True, lstm_cell_size=options.width, max_seq_len=config.ppo.rollout_length,
        fcnet_hiddens=[options.width],
        conv_filters=[[32, 8, 4], [64, 4, 2], [64, 3, 1]] if env.is_image else None,
    )  # fmt: skip
    algorithm = (
        PPOConfig()
        .environment("paced")
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=env.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=config.ppo.rollout_length,
        )
        .learners(num_learners=0)
        .rl_module(model_config=model)
        .training(
            train_batch_size_per_learner=steps,
            minibatch_size=steps // config.ppo.num_minibatches,
            num_epochs=config.ppo.num_epochs,
        )
        .build_algo()
    )  # fmt: skip
    module = algorithm.get_module()

    def train() -> None:
        while True:
            algorithm.train()
            env.turns.wait()

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        state = {
            key: torch.as_tensor(part).expand(rows, *part.shape)
            for key, part in module.get_initial_state().items()
        }
        distribution = module.get_exploration_action_dist_cls()

        @torch.no_grad()
        def step() -> None:
            nonlocal state
            inputs = torch.as_tensor(observation).float()[:, None]
            batch = {Columns.OBS: inputs, Columns.STATE_IN: state}
            outputs = module.forward_exploration(batch, t=0)
            state = outputs[Columns.STATE_OUT]
            distribution.from_logits(outputs[Columns.ACTION_DIST_INPUTS][:, 0]).sample().numpy()

        return step

    parameters = sum(parameter.numel() for parameter in module.parameters())
    return System(f"RLlib {ray.__version__} PPO, LSTM", parameters, train, act)


if __name__ == "__main__":
    run(build)
