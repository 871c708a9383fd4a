"""From a configuration to its torso, and to the torso of a given size."""

from dataclasses import replace

import torch

from mtxl_rl.torso.memory_transformer import MemoryTransformer
from mtxl_rl.torso.recurrent import FeedForwardTorso, RecurrentTorso
from mtxl_rl.torso.torso_config import TorsoConfig

Torso = MemoryTransformer | RecurrentTorso | FeedForwardTorso


def build_torso(config: TorsoConfig) -> Torso:
    """The torso that `config` describes, its width chosen first where `num_parameters` is given."""
    config = match_parameters(config)
    if config.kind == "none":
        return FeedForwardTorso(config)
    if config.kind in ("gru", "lstm"):
        return RecurrentTorso(config)
    return MemoryTransformer(config)


def count_parameters(config: TorsoConfig) -> int:
    """Parameters of the torso that `config` describes; none is allocated."""
    with torch.device("meta"):
        torso = build_torso(config)
    return sum(parameter.numel() for parameter in torso.parameters())


def match_parameters(config: TorsoConfig) -> TorsoConfig:
    """`config` with the width that brings its torso nearest to `num_parameters`, unless that is 0.

    So torsos of any kind are compared at equal size; all else stays as `config` says, but for
    `num_parameters`, which has done its work and becomes 0.

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
            f"torso.num_parameters={target} is too few: with torso.width={multiple}, the least, "
            f"this torso has {count(1)}; ask for more, or for fewer layers or persistent pairs"
        )
    low, high = 1, 2
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= target else (middle, high)
    nearest = min((low, high), key=lambda factor: abs(count(factor) - target))
    return replace(config, width=nearest * multiple, num_parameters=0)
