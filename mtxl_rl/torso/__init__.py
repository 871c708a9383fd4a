"""The recurrent torso: a gated Memory Transformer-XL. It knows no reinforcement learning."""

from mtxl_rl.torso.cache import Cache, DecodeCache, window_mask
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.factory import Torso, build_torso, count_parameters, match_parameters
from mtxl_rl.torso.memory_transformer import MemoryTransformer
from mtxl_rl.torso.state import MemoryState
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig, TokensConfig, TorsoConfig
from mtxl_rl.torso.weights import load_torso, save_torso

__all__ = [
    "Cache",
    "DecodeCache",
    "Diagnostics",
    "MemoryState",
    "MemoryTransformer",
    "SlotsConfig",
    "SublayersConfig",
    "TokensConfig",
    "Torso",
    "TorsoConfig",
    "build_torso",
    "count_parameters",
    "load_torso",
    "match_parameters",
    "save_torso",
    "window_mask",
]
