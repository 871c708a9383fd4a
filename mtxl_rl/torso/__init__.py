"""The recurrent torso: a gated Memory Transformer-XL. It knows no reinforcement learning."""

from mtxl_rl.torso.config import TorsoConfig
from mtxl_rl.torso.memory_transformer import ActingMemory, MemoryTransformer, valid_window
from mtxl_rl.torso.state import MemoryState

__all__ = ["ActingMemory", "MemoryState", "MemoryTransformer", "TorsoConfig", "valid_window"]
