"""Any torso in RLlib's PPO, instead of its LSTM: `pip install 'mtxl_rl[rllib]'`.

```python
spec = RLModuleSpec(
    catalog_class=TorsoCatalog,
    model_config={"torso": TorsoConfig(width=64), "max_seq_len": 64, "vf_share_layers": True},
)
config = PPOConfig().environment("CartPole-v1").rl_module(rl_module_spec=spec)
```
"""

from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder, tokenize
from ray.rllib.core.models.configs import RecurrentEncoderConfig
from ray.rllib.core.models.torch.base import TorchModel
from torch import Tensor, nn

from mtxl_rl.integrations.flat_torso import FlatTorso
from mtxl_rl.torso import TorsoConfig, build_torso, match_parameters

# B rows, T steps, n numbers of a memory.


@dataclass
class TorsoEncoderConfig(RecurrentEncoderConfig):  # type: ignore[misc]
    """RLlib's configuration of a `TorsoEncoder`."""

    torso: TorsoConfig | None = None

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Shape of the heads' input, (D,)."""
        assert self.torso is not None
        return (self.torso.width,)

    def build(self, framework: str = "torch") -> "TorsoEncoder":
        """The encoder.

        Raises:
            ValueError: the framework is another than torch.
        """
        if framework != "torch":
            raise ValueError(f"framework={framework} was given, but a torso is one of torch")
        return TorsoEncoder(self)


class TorsoEncoder(TorchModel, Encoder):  # type: ignore[misc]
    """RLlib's own encoder of observations, a linear map, and the torso.

    The state is the memory as one vector, `MemoryState.to_flat`. RLlib stores one with every step
    and learns from rows of `max_seq_len` steps, none of which crosses an episode's start.
    """

    def __init__(self, config: TorsoEncoderConfig) -> None:
        TorchModel.__init__(self, config)
        assert config.torso is not None
        self.tokenizer = config.tokenizer_config.build(framework="torch")
        self.input = nn.Linear(config.tokenizer_config.output_dims[0], config.torso.width)
        self.torso = FlatTorso(build_torso(config.torso))

    def get_initial_state(self) -> dict[str, Tensor]:
        """An empty memory, [n]."""
        return {"memory": torch.zeros(self.torso.memory_size)}

    def _forward(self, inputs: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: ANN401
        """The torso's output for [B, T] steps, and the memories after them."""
        x = self.input(tokenize(self.tokenizer, inputs, framework="torch"))
        never = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        y, memory = self.torso(x, inputs[Columns.STATE_IN]["memory"], never)
        return {ENCODER_OUT: y, Columns.STATE_OUT: {"memory": memory}}


class TorsoCatalog(PPOCatalog):  # type: ignore[misc]
    """RLlib's catalog for PPO, whose encoders end in `model_config["torso"]`.

    All other entries of `model_config` mean what they do in RLlib; with `vf_share_layers=True`
    actor and critic share the torso, without they have one each.
    """

    @classmethod
    def _get_encoder_config(
        cls,
        observation_space: Any,  # noqa: ANN401
        model_config_dict: dict[str, Any],
        action_space: Any = None,  # noqa: ANN401, ARG003
    ) -> TorsoEncoderConfig:
        """The encoder's configuration.

        Raises:
            ValueError: there is no torso, or an LSTM is asked for too.
        """
        torso = model_config_dict.get("torso")
        if not isinstance(torso, TorsoConfig):
            raise ValueError(
                f"model_config['torso'] is {torso!r}; it must be a TorsoConfig, as in "
                "model_config={'torso': TorsoConfig(width=64)}"
            )
        if model_config_dict["use_lstm"]:
            raise ValueError(
                "use_lstm=True was given with a torso, which replaces the LSTM; leave it out"
            )
        return TorsoEncoderConfig(
            input_dims=observation_space.shape,
            hidden_dim=torso.width,
            tokenizer_config=super()._get_encoder_config(observation_space, model_config_dict),
            torso=match_parameters(torso),
        )
