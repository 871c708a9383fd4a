"""Builds the torso of a configuration, at its width or to a number of parameters."""

from dataclasses import replace

import torch

from mtxl_rl.torso.memory_transformer import MemoryTransformer
from mtxl_rl.torso.recurrent import FeedForwardTorso, RecurrentTorso
from mtxl_rl.torso.torso_config import TorsoConfig

Torso = MemoryTransformer | RecurrentTorso | FeedForwardTorso


def build_torso(config: TorsoConfig) -> Torso:
    """The torso that `config` describes; `num_parameters`, if set, chooses its width."""
    config = match_parameters(config)
    if config.kind == "mlp":
        return FeedForwardTorso(config)
    if config.kind in ("gru", "lstm"):
        return RecurrentTorso(config)
    return MemoryTransformer(config)


def count_parameters(config: TorsoConfig) -> int:
    """The number of parameters of the torso that `config` describes, without allocating them."""
    with torch.device("meta"):
        torso = build_torso(config)
    return sum(parameter.numel() for parameter in torso.parameters())


def match_parameters(config: TorsoConfig) -> TorsoConfig:
    """`config` with the width that comes closest to `num_parameters`, unless that is 0.

    So torsos of any kind can be compared at equal size. `num_parameters` becomes 0; all other
    fields stay.

    Raises:
        ValueError: even the narrowest torso has more than twice as many.
    """
    target = config.num_parameters
    if target == 0:
        return config
    multiple = config.width_multiple

    def count(factor: int) -> int:
        return count_parameters(replace(config, width=factor * multiple, num_parameters=0))

    if count(1) > 2 * target:
        raise ValueError(
            f"torso.num_parameters={target} is too few: with the smallest width, "
            f"torso.width={multiple}, this torso has {count(1)}; use more parameters, fewer layers "
            "or fewer persistent pairs"
        )
    low, high = 1, 2
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= target else (middle, high)
    nearest = min((low, high), key=lambda factor: abs(count(factor) - target))
    return replace(config, width=nearest * multiple, num_parameters=0)
