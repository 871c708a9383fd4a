"""Any torso in rsl_rl's recurrent models, instead of its LSTM: `pip install 'mtxl_rl[rsl_rl]'`.

```python
model = {
    "class_name": "mtxl_rl.integrations.rsl_rl:TorsoModel",
    "hidden_dims": [64],
    "activation": "elu",
    "torso": {"width": 64, "window_length": 16, "segment_length": 16},
}
```
"""

from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float
from rsl_rl.models import RNNModel
from rsl_rl.modules import RNN
from rsl_rl.utils import unpad_trajectories
from torch import Tensor, nn

from mtxl_rl.integrations.flat_torso import FlatTorso
from mtxl_rl.torso import TorsoConfig, build_torso, match_parameters
from mtxl_rl.torso.torso_config import torso_config_from

# B rows, T steps, F features, D width, n numbers of a memory.


class TorsoMemory(RNN):  # type: ignore[misc]
    """A linear map and a torso, with the calls of rsl_rl's `RNN`.

    The hidden state [1, B, n] is the memory as one vector. `reset` zeroes the rows of `dones`,
    which starts an episode.
    """

    hidden_state: Tensor | None

    def __init__(self, num_features: int, torso: TorsoConfig) -> None:
        nn.Module.__init__(self)
        self.encoder = nn.Linear(num_features, torso.width)
        self.torso = FlatTorso(build_torso(torso))
        self.hidden_state = None

    def forward(
        self,
        input: Float[Tensor, "*steps F"],  # noqa: A002
        masks: Bool[Tensor, "T B"] | None = None,
        hidden_state: Float[Tensor, "1 B n"] | None = None,
    ) -> Float[Tensor, "T rows D"]:
        """Outputs of one step [B, F], which moves `hidden_state`, or of padded trajectories.

        Args:
            input: features of one step [B, F], or with `masks` of trajectories [T, B, F]; each
                starts with an episode or with the rollout, and its padding comes last.
            masks: the valid steps of the trajectories.
            hidden_state: the memory before each trajectory's first step.

        Raises:
            ValueError: masks were given without a hidden state.
        """
        if masks is None:
            memory = self.hidden_state
            if memory is None:
                memory = input.new_zeros(1, len(input), self.torso.memory_size)
            y, after = self._run(input[:, None], memory[0])
            self.hidden_state = after[None]
            return y.transpose(0, 1)
        if hidden_state is None:
            raise ValueError(
                "trajectories were given without hidden_state, the memory before each of them; "
                "pass the one that the rollout stored, [1, B, n]"
            )
        y, _ = self._run(input.transpose(0, 1), hidden_state[0])
        outputs: Tensor = unpad_trajectories(y.transpose(0, 1), masks)
        return outputs

    def _run(
        self, x: Float[Tensor, "B T F"], memory: Float[Tensor, "B n"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B n"]]:
        never = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        outputs: tuple[Tensor, Tensor] = self.torso(self.encoder(x), memory, never)
        return outputs


class TorsoModel(RNNModel):  # type: ignore[misc]
    """rsl_rl's recurrent model, whose memory is a torso; an actor or a critic.

    All options except `rnn_*` are those of `RNNModel`. The storage keeps one memory of n numbers
    per step for each model, so use short windows.

    Args:
        args: observations, their groups, the set of this model, and the output's size.
        torso: a TorsoConfig, or its fields as a mapping.
        options: the other options.

    Raises:
        ValueError: an option of the LSTM was given.
    """

    def __init__(self, *args: Any, torso: TorsoConfig | dict[str, Any], **options: Any) -> None:  # noqa: ANN401
        wrong = [name for name in options if name.startswith("rnn_")]
        if wrong:
            raise ValueError(
                f"{wrong[0]} was given, but TorsoModel has no LSTM; remove it, and set the sizes "
                "by torso={'width': ..., 'num_layers': ...}"
            )
        if not isinstance(torso, TorsoConfig):
            torso = torso_config_from(torso)
        config = match_parameters(torso)
        # The parent's recurrent network is replaced.
        super().__init__(*args, rnn_type="gru", rnn_hidden_dim=config.width, **options)
        self.rnn = TorsoMemory(self.obs_dim, config)

    def as_jit(self) -> NoReturn:
        """Refuse: rsl_rl's export covers an LSTM or a GRU.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "TorsoModel has no TorchScript or ONNX export; save the model's state_dict with "
            "runner.save(path), and load it with runner.load(path)"
        )

    def as_onnx(self, verbose: bool = False) -> NoReturn:  # noqa: ARG002
        """Refuse, as `as_jit`.

        Raises:
            NotImplementedError: always.
        """
        self.as_jit()
