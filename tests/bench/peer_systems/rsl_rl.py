"""rsl_rl's OnPolicyRunner and PPO: actor and critic have an LSTM each.

rsl_rl has continuous actions only: the environments take the largest of its Gaussian outputs.
"""

import argparse
import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from torch import Tensor

from mtxl_rl.config import TrainConfig
from peer_systems.turns import ENDLESS, PacedEnv, System, run


class RslEnv(VecEnv):
    """The paced environments as rsl_rl's."""

    device = "cpu"
    cfg: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, env: PacedEnv) -> None:
        self.env, self.num_envs, self.num_actions = env, env.num_envs, env.num_actions
        self.max_episode_length = env.episode_length
        self.episode_length_buf = torch.zeros(env.num_envs, dtype=torch.long)

    def get_observations(self) -> TensorDict:
        """The current observations."""
        return TensorDict({"policy": torch.as_tensor(self.env.observation)}, [self.num_envs])

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """One step of all environments."""
        _, reward, terminated, truncated, _ = self.env.step(actions.argmax(1).numpy())
        reward, dones = torch.as_tensor(reward).float(), torch.as_tensor(terminated | truncated)
        return self.get_observations(), reward, dones, {"time_outs": torch.as_tensor(truncated)}


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The runner; its MLPs have one hidden layer."""
    if env.is_image:
        raise ValueError("rsl_rl has no recurrent model for pictures")
    model = {
        "class_name": "RNNModel", "rnn_type": "lstm", "rnn_hidden_dim": options.width,
        "rnn_num_layers": options.layers, "hidden_dims": [options.width], "activation": "elu",
    }  # fmt: skip
    distribution = {"class_name": "GaussianDistribution", "init_std": 1.0}
    runner = OnPolicyRunner(
        RslEnv(env),
        {
            "num_steps_per_env": config.ppo.rollout_length,
            "save_interval": ENDLESS,
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": model | {"distribution_cfg": distribution},
            "critic": model,
            "algorithm": {
                "class_name": "PPO",
                "num_learning_epochs": config.ppo.num_epochs,
                "num_mini_batches": config.ppo.num_minibatches,
            },
        },
    )
    actor, critic = runner.alg.actor, runner.alg.critic

    def act(rows: int) -> Callable[[], object]:
        observation, model = env.observations(rows), copy.deepcopy(actor)
        model.reset()

        def step() -> None:
            inputs = TensorDict({"policy": torch.as_tensor(observation)}, [rows])
            with torch.inference_mode():
                model(inputs, stochastic_output=True).argmax(1).numpy()

        return step

    parameters = sum(p.numel() for module in (actor, critic) for p in module.parameters())
    version = importlib.metadata.version("rsl-rl-lib")
    title = f"rsl_rl {version} PPO, LSTM, Gaussian actions"
    return System(title, parameters, lambda: runner.learn(ENDLESS), act)


if __name__ == "__main__":
    run(build)
