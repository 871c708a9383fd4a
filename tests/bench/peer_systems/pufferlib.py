"""PufferLib's PuffeRL with its LSTMWrapper (one layer), and Adam in place of Muon."""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import pufferlib
import pufferlib.models
import pufferlib.pufferl
import torch
from numpy.typing import NDArray
from pufferlib.pytorch import sample_logits
from torch import Tensor

from mtxl_rl.config import TrainConfig
from peer_systems.encoder import Encoder
from peer_systems.turns import ENDLESS, PacedEnv, System, run


class Agents(pufferlib.PufferEnv):
    """The paced environments, copied into PufferLib's buffers."""

    def __init__(self, env: PacedEnv) -> None:
        self.env, self.num_agents = env, env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.agents_per_batch = env.num_envs
        super().__init__()

    def reset(self, seed: int | None = None) -> tuple[NDArray[Any], list[dict[str, Any]]]:  # noqa: ARG002
        """The current observations."""
        self.observations[:] = self.env.observation
        return self.observations, []

    def step(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        """One step of all environments."""
        observation, self.rewards[:], self.terminals[:], self.truncations[:], _ = self.env.step(
            actions
        )
        self.observations[:] = observation
        return self.observations, self.rewards, self.terminals, self.truncations, []

    def close(self) -> None:
        """The process ends with the environments."""


class Policy(pufferlib.models.Default):
    """PufferLib's default policy with a Nature CNN for pictures."""

    def __init__(self, agents: Agents, width: int) -> None:
        super().__init__(agents, hidden_size=width)
        self.encoder = Encoder(agents.env, width)

    def encode_observations(self, observations: Tensor, state: Any = None) -> Tensor:  # noqa: ANN401, ARG002
        """Features of the observations."""
        return self.encoder(observations)


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The trainer; settings that the comparison does not fix keep their defaults."""
    ppo, width = config.ppo, options.width
    steps = env.num_envs * ppo.rollout_length
    agents = Agents(env)
    policy = Policy(agents, width)
    policy = pufferlib.models.LSTMWrapper(agents, policy, input_size=width, hidden_size=width)
    del sys.argv[1:]  # It reads options from there.
    settings = pufferlib.pufferl.load_config("default")["train"] | {
        "env": "paced", "device": "cpu", "use_rnn": True, "optimizer": "adam",
        "batch_size": steps, "bptt_horizon": ppo.rollout_length,
        "minibatch_size": steps // ppo.num_minibatches, "update_epochs": ppo.num_epochs,
        "total_timesteps": ENDLESS, "checkpoint_interval": ENDLESS,
    }  # fmt: skip
    # It is set where a CUDA compiler is installed, even if there is no GPU.
    pufferlib.pufferl.ADVANTAGE_CUDA = False

    def train() -> None:
        trainer = pufferlib.pufferl.PuffeRL(settings, agents, policy)
        while True:
            trainer.evaluate()
            trainer.train()

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        state = {key: torch.zeros(rows, width) for key in ("lstm_h", "lstm_c")}

        @torch.no_grad()
        def step() -> None:
            logits, _ = policy.forward_eval(torch.as_tensor(observation), state)
            sample_logits(logits)[0].numpy()

        return step

    parameters = sum(parameter.numel() for parameter in policy.parameters())
    version = importlib.metadata.version("pufferlib")
    return System(f"PufferLib {version} PuffeRL, LSTM", parameters, train, act)


if __name__ == "__main__":
    run(build)
