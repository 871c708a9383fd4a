"""Sample Factory's synchronous PPO with an LSTM, in its serial mode: one process does all."""

import argparse
import importlib.metadata
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import sample_factory.algo.runners.runner as runners
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sample_factory.algo.utils.env_info import extract_env_info
from sample_factory.algo.utils.make_env import BatchedListToDictWrapper, make_env_func_batched
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.train import run_rl

from mtxl_rl.config import TrainConfig
from peer_systems.turns import ENDLESS, PacedEnv, System, run


class Agents(gymnasium.Env[Any, Any]):
    """The paced environments as one of several agents, pictures with channels first."""

    is_multiagent = True

    def __init__(self, env: PacedEnv) -> None:
        self.env, self.num_agents = env, env.num_envs
        space = env.single_observation_space
        if env.is_image:
            height, width, channels = space.shape
            space = spaces.Box(0, 255, (channels, height, width), np.uint8)
        self.observation_space = spaces.Dict(obs=space)
        self.action_space = env.single_action_space

    def leaves(self, observation: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The observation as Sample Factory names it."""
        if self.env.is_image:
            observation = np.ascontiguousarray(observation.transpose(0, 3, 1, 2))
        return {"obs": observation}

    def reset(self, **_: object) -> tuple[Any, Any]:  # type: ignore[override]
        """The current observations."""
        return self.leaves(self.env.observation), [{} for _ in range(self.num_agents)]

    def step(self, actions: NDArray[Any]) -> tuple[Any, ...]:  # type: ignore[override]
        """One step of all environments."""
        observation, reward, *ends, _ = self.env.step(actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_agents)]
        return self.leaves(observation), np.asarray(reward, np.float32), *ends, infos


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The training run of the comparison's sizes."""
    ppo, width = config.ppo, options.width
    steps = env.num_envs * ppo.rollout_length
    register_env("paced", lambda *_, **__: Agents(env))
    flags = {
        "env": "paced", "experiment": "paced", "train_dir": "sample_factory", "device": "cpu",
        "restart_behavior": "overwrite", "serial_mode": True, "async_rl": False,
        "batched_sampling": True, "num_workers": 1, "num_envs_per_worker": 1,
        "worker_num_splits": 1, "rollout": ppo.rollout_length, "recurrence": ppo.rollout_length,
        "batch_size": steps // ppo.num_minibatches, "num_batches_per_epoch": ppo.num_minibatches,
        "num_epochs": ppo.num_epochs, "rnn_type": "lstm", "rnn_size": width,
        "rnn_num_layers": options.layers, "encoder_conv_mlp_layers": width,
        "encoder_conv_architecture": "convnet_atari", "obs_scale": 255.0 if env.is_image else 1.0,
        "train_for_env_steps": ENDLESS, "save_every_sec": ENDLESS,
    }  # fmt: skip
    argv = [f"--{name}={value}" for name, value in flags.items()]
    argv += ["--encoder_mlp_layers", str(width)]
    cfg = parse_full_cfg(parse_sf_args(argv)[0], argv)
    # It was written for wrappers of Gymnasium 0.29, which pass attributes on.
    BatchedListToDictWrapper.num_agents = env.num_envs
    BatchedListToDictWrapper.is_multiagent = True
    # Another process, which it would start for this, could not see the environments.
    info = extract_env_info(make_env_func_batched(cfg, None), cfg)
    runners.obtain_env_info_in_a_separate_process = lambda _: info
    model = create_actor_critic(cfg, info.obs_space, info.action_space).eval()

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        state = torch.zeros(rows, 2 * options.layers * width)

        @torch.no_grad()
        def step() -> None:
            nonlocal state
            leaves = Agents(env).leaves(observation)
            inputs = {key: torch.as_tensor(leaf) for key, leaf in leaves.items()}
            outputs = model(prepare_and_normalize_obs(model, inputs), state)
            state = outputs["new_rnn_states"]
            outputs["actions"].numpy()

        return step

    version = importlib.metadata.version("sample-factory")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"Sample Factory {version} APPO, synchronous, LSTM"
    return System(title, parameters, lambda: run_rl(cfg), act)


if __name__ == "__main__":
    run(build)
