"""Any torso in sb3-contrib's RecurrentPPO, in the place of its LSTMs: `pip install 'mtxl_rl[sb3]'`.

```python
agent = RecurrentPPO(MlpTorsoPolicy, envs, policy_kwargs={"torso": TorsoConfig(width=64)})
```
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn

from mtxl_rl.integrations.flat_torso import FlatTorso
from mtxl_rl.torso import TorsoConfig, build_torso, match_parameters

# B rows, T steps, F features, D width, n numbers of a memory.

LSTM_OPTIONS = ("lstm_hidden_size", "n_lstm_layers", "lstm_kwargs")


class Core(nn.Module):
    """A torso behind a linear map, with the sizes by which RecurrentPPO stores an LSTM's states.

    The hidden state is the memory as one vector; the cell state stays zero, and is stored all the
    same.
    """

    num_layers = 1

    def __init__(self, num_features: int, torso: TorsoConfig) -> None:
        super().__init__()
        self.input_size = num_features
        self.encoder = nn.Linear(num_features, torso.width)
        self.torso = FlatTorso(build_torso(torso))
        self.hidden_size = self.torso.memory_size

    def forward(
        self,
        features: Float[Tensor, "B T F"],
        memory: Float[Tensor, "B n"],
        is_first: Tensor,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B n"]]:
        """Outputs of the torso at T steps, and the memory after them."""
        outputs: tuple[Tensor, Tensor] = self.torso(self.encoder(features), memory, is_first)
        return outputs


class TorsoPolicy(RecurrentActorCriticPolicy):  # type: ignore[misc]
    """sb3-contrib's recurrent policy with torsos as its `lstm_actor` and `lstm_critic`.

    All other options are those of `RecurrentActorCriticPolicy`. By default actor and critic have
    one torso each; with `enable_critic_lstm=False` the critic sees the observation alone, or with
    `shared_lstm=True` the outputs of the actor's torso, without training its weights.

    RecurrentPPO stores four vectors of n numbers for each step, where `mtxl_rl.train` stores one
    for each span: keep windows short.

    Args:
        args: observation space, action space and schedule of the learning rate.
        torso: of actor and critic.
        named: the other options.

    Raises:
        ValueError: an option of the LSTMs was given.
    """

    extractor: ClassVar[type[nn.Module]] = FlattenExtractor
    lstm_critic: nn.Module | None
    optimizer: torch.optim.Optimizer

    def __init__(self, *args: Any, torso: TorsoConfig, **named: Any) -> None:  # noqa: ANN401
        wrong = [name for name in LSTM_OPTIONS if name in named]
        if wrong:
            raise ValueError(
                f"{wrong[0]} was given, but there is no LSTM here; the sizes are those of "
                "policy_kwargs={'torso': TorsoConfig(width=..., num_layers=...)}"
            )
        self.torso_config = match_parameters(torso)
        named.setdefault("features_extractor_class", self.extractor)
        super().__init__(*args, lstm_hidden_size=self.torso_config.width, **named)
        self.lstm_actor = Core(self.features_dim, self.torso_config)
        if self.lstm_critic is not None:
            self.lstm_critic = Core(self.features_dim, self.torso_config)
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.hidden_size)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Constructor arguments that `save` writes next to the weights."""
        parameters: dict[str, Any] = super()._get_constructor_parameters()
        return parameters | {"torso": self.torso_config}

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Core
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features [B x T, F] from states [1, B, n] on; what is padded comes after a row's end."""
        memory, cell = lstm_states
        batch = memory.shape[1]
        y, after = lstm(
            features.reshape(batch, -1, lstm.input_size),
            memory[0],
            episode_starts.reshape(batch, -1) > 0,
        )
        return y.flatten(0, 1), (after[None], torch.zeros_like(cell))


MlpTorsoPolicy = TorsoPolicy


class CnnTorsoPolicy(TorsoPolicy):
    """The policy for pictures."""

    extractor = NatureCNN


class MultiInputTorsoPolicy(TorsoPolicy):
    """The policy for dict observations."""

    extractor = CombinedExtractor
