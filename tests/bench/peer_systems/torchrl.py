"""TorchRL's PPO: its collector, LSTMModule, GAE and ClipPPOLoss, put together as its users do.

Actor and critic share the LSTM. Minibatches are whole environments.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torchrl
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, InitTracker, TransformedEnv
from torchrl.modules import LSTMModule, ProbabilisticActor, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from mtxl_rl.config import TrainConfig
from peer_systems.encoder import Encoder
from peer_systems.turns import ENDLESS, PacedEnv, System, run


class TorchRLEnv(EnvBase):
    """The paced environments, which reset themselves."""

    def __init__(self, env: PacedEnv) -> None:
        super().__init__(device="cpu", batch_size=[env.num_envs])
        self.env, batch = env, env.num_envs
        dtype = torch.uint8 if env.is_image else torch.float32
        shape = (batch, *env.single_observation_space.shape)
        self.observation_spec = Composite(
            observation=Unbounded(shape=shape, dtype=dtype), shape=[batch]
        )
        self.action_spec = Categorical(env.num_actions, shape=[batch])
        self.reward_spec = Unbounded(shape=[batch, 1])
        flag = Categorical(2, shape=[batch, 1], dtype=torch.bool)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=[batch]
        )

    def _reset(self, _: TensorDictBase | None = None, **__: Any) -> TensorDict:  # noqa: ANN401
        observation, _ = self.env.reset()
        return TensorDict({"observation": torch.as_tensor(observation)}, [self.env.num_envs])

    def _step(self, step: TensorDictBase) -> TensorDict:
        observation, *outcome, _ = self.env.step(step["action"].numpy())
        reward, terminated, truncated = (torch.as_tensor(part)[:, None] for part in outcome)
        entries = {
            "observation": torch.as_tensor(observation), "reward": reward.float(),
            "terminated": terminated, "truncated": truncated, "done": terminated | truncated,
        }  # fmt: skip
        return TensorDict(entries, [self.env.num_envs])

    def _set_seed(self, seed: int | None) -> None:
        """The environments have their seed."""


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """A collector, a loss, and the loop over epochs and minibatches."""
    width = options.width
    lstm = LSTMModule(
        input_size=width, hidden_size=width, num_layers=options.layers,
        in_key="encoded", out_key="features",
    )  # fmt: skip
    envs = TransformedEnv(TorchRLEnv(env), InitTracker())
    envs.append_transform(lstm.make_tensordict_primer())
    common = [TensorDictModule(Encoder(env, width), ["observation"], ["encoded"]), lstm]
    logits = TensorDictModule(nn.Linear(width, env.num_actions), ["features"], ["logits"])
    actor = ProbabilisticActor(
        TensorDictSequential(*common, logits),
        in_keys=["logits"], distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )  # fmt: skip
    value = TensorDictModule(nn.Linear(width, 1), ["features"], ["state_value"])
    critic = TensorDictSequential(*common, value)
    gae = GAE(gamma=config.ppo.gamma, lmbda=config.ppo.gae_lambda, value_network=critic,
              deactivate_vmap=True)  # fmt: skip
    loss = ClipPPOLoss(actor, critic, clip_epsilon=config.ppo.clip_coef)
    parameters = list(loss.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.ppo.learning_rate)

    def learn(steps: TensorDictBase) -> None:
        with torch.no_grad():
            gae(steps)
        for _ in range(config.ppo.num_epochs):
            for rows in torch.randperm(env.num_envs).chunk(config.ppo.num_minibatches):
                losses = loss(steps[rows])
                total: Tensor = sum(part for key, part in losses.items() if "loss_" in key)
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(parameters, config.ppo.max_grad_norm)
                optimizer.step()

    def train() -> None:
        frames = env.num_envs * config.ppo.rollout_length
        for steps in Collector(
            envs, actor, frames_per_batch=frames, total_frames=ENDLESS, device="cpu"
        ):
            with set_recurrent_mode(True):
                learn(steps)

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        zeros = torch.zeros(rows, options.layers, width)
        state = {key: zeros for key in lstm.in_keys if "state" in key}
        is_init = torch.zeros(rows, 1, dtype=torch.bool)

        @torch.no_grad()
        def step() -> None:
            nonlocal state
            inputs = {"observation": torch.as_tensor(observation), "is_init": is_init, **state}
            outputs = actor(TensorDict(inputs, [rows]))
            state = {key: outputs["next", key] for key in state}
            outputs["action"].numpy()

        return step

    title = f"TorchRL {torchrl.__version__} PPO, LSTMModule"
    return System(title, sum(p.numel() for p in parameters), train, act)


if __name__ == "__main__":
    run(build)
