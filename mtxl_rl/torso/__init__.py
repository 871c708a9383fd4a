"""The recurrent torso: a gated Memory Transformer-XL. It knows no reinforcement learning."""

from mtxl_rl.torso.acting import WindowedMemory, WindowlessMemory, valid_window
from mtxl_rl.torso.factory import Torso, build_torso, count_parameters, match_parameters
from mtxl_rl.torso.memory_transformer import MemoryTransformer
from mtxl_rl.torso.record import Record
from mtxl_rl.torso.state import ActingMemory, MemoryState
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig, TokensConfig, TorsoConfig
from mtxl_rl.torso.weights import load_torso, save_torso

__all__ = [
    "ActingMemory",
    "MemoryState",
    "MemoryTransformer",
    "Record",
    "SlotsConfig",
    "SublayersConfig",
    "TokensConfig",
    "Torso",
    "TorsoConfig",
    "WindowedMemory",
    "WindowlessMemory",
    "build_torso",
    "count_parameters",
    "load_torso",
    "match_parameters",
    "save_torso",
    "valid_window",
]
