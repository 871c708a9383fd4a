"""skrl's PPO_RNN and SequentialTrainer: policy and value have an LSTM each, as in its examples."""

import argparse
from collections.abc import Callable
from typing import Any

import skrl
import torch
from skrl.agents.torch.ppo import PPO_CFG, PPO_RNN
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils.spaces.torch import unflatten_tensorized_space
from torch import Tensor, nn

from mtxl_rl.config import TrainConfig
from peer_systems.encoder import Encoder
from peer_systems.turns import ENDLESS, PacedEnv, System, run


class Recurrent(Model):
    """Encoder, LSTM and a linear head; sequences are cut where episodes end."""

    def __init__(
        self, env: PacedEnv, *, num_outputs: int, num_layers: int, width: int, length: int
    ) -> None:
        Model.__init__(
            self, observation_space=env.single_observation_space,
            action_space=env.single_action_space, device="cpu",
        )  # fmt: skip
        self.sizes = [(num_layers, env.num_envs, width)] * 2
        self.length = length
        self.encoder = Encoder(env, width)
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True)
        self.head = nn.Linear(width, num_outputs)

    def get_specification(self) -> dict[str, Any]:
        """What the agent stores of the LSTM."""
        return {"rnn": {"sequence_length": self.length, "sizes": self.sizes}}

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:  # noqa: ARG002
        """Outputs of one step, or of whole sequences while training."""
        observation = unflatten_tensorized_space(self.observation_space, inputs["observations"])
        x, (hidden, cell) = self.encoder(observation), inputs["rnn"]
        if not self.training:
            y, state = self.lstm(x[:, None], (hidden.contiguous(), cell.contiguous()))
            return self.head(y[:, 0]), {"rnn": list(state)}
        x = x.view(-1, self.length, x.shape[-1])
        # The states of all steps are given; those of the sequences' first steps are used.
        state = tuple(
            part.view(len(part), -1, self.length, part.shape[-1])[:, :, 0].contiguous()
            for part in (hidden, cell)
        )
        done = (inputs["terminated"] | inputs["truncated"]).view(-1, self.length)
        ends = (done[:, :-1].any(0).nonzero()[:, 0] + 1).tolist()
        outputs = []
        for begin, end in zip([0, *ends], [*ends, self.length], strict=True):
            y, state = self.lstm(x[:, begin:end], state)
            keep = ~done[:, end - 1, None]
            state = tuple(part * keep for part in state)
            outputs.append(y)
        return self.head(torch.cat(outputs, 1).flatten(0, 1)), {"rnn": list(state)}


class Policy(CategoricalMixin, Recurrent):
    """The actor."""

    def __init__(self, *args: Any, **sizes: int) -> None:  # noqa: ANN401
        Recurrent.__init__(self, *args, **sizes)
        CategoricalMixin.__init__(self)


class Value(DeterministicMixin, Recurrent):
    """The critic."""

    def __init__(self, *args: Any, **sizes: int) -> None:  # noqa: ANN401
        Recurrent.__init__(self, *args, **sizes)
        DeterministicMixin.__init__(self)


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The agent with its memory, and the trainer."""
    length = config.ppo.rollout_length
    sizes = {"num_layers": options.layers, "width": options.width, "length": length}
    models = {
        "policy": Policy(env, num_outputs=env.num_actions, **sizes),
        "value": Value(env, num_outputs=1, **sizes),
    }
    envs = wrap_env(env, wrapper="gymnasium", verbose=False)
    agent = PPO_RNN(
        models=models,
        memory=RandomMemory(memory_size=length, num_envs=env.num_envs, device="cpu"),
        observation_space=envs.observation_space,
        action_space=envs.action_space,
        device="cpu",
        cfg=PPO_CFG(
            rollouts=length,
            learning_epochs=config.ppo.num_epochs,
            mini_batches=config.ppo.num_minibatches,
            entropy_loss_scale=config.ppo.entropy_coef,
            experiment={"write_interval": 0, "checkpoint_interval": 0},
        ),
    )
    trainer = SequentialTrainer(
        env=envs, agents=agent,
        cfg={"timesteps": ENDLESS, "headless": True, "disable_progressbar": True},
    )  # fmt: skip

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows).reshape(rows, -1)
        model, state = (
            models["policy"].eval(),
            [torch.zeros(options.layers, rows, options.width)] * 2,
        )

        @torch.no_grad()
        def step() -> None:
            nonlocal state
            inputs = {"observations": torch.as_tensor(observation).float(), "rnn": state}
            actions, outputs = model.act(inputs, role="policy")
            state = outputs["rnn"]
            actions.numpy()

        return step

    parameters = sum(p.numel() for model in models.values() for p in model.parameters())
    return System(f"skrl {skrl.__version__} PPO_RNN, LSTM", parameters, trainer.train, act)


if __name__ == "__main__":
    run(build)
