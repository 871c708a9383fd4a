"""Long-term memories: matrices read by heads of their own, slots that the attention reads."""

from mtxl_rl.torso.long_term.delta import DeltaMemory
from mtxl_rl.torso.long_term.interface import MatrixMemory, SlotStore
from mtxl_rl.torso.long_term.linear import AGaLiTeFeatures, LinearMemory, RetentionFeatures
from mtxl_rl.torso.long_term.slots import SlotMemory
from mtxl_rl.torso.long_term.tokens import Control, TokenMemory

__all__ = [
    "AGaLiTeFeatures",
    "Control",
    "DeltaMemory",
    "LinearMemory",
    "MatrixMemory",
    "RetentionFeatures",
    "SlotMemory",
    "SlotStore",
    "TokenMemory",
]
