"""Long-term memories: a module for each kind, and the table of their names."""

from mtxl_rl.torso.long_term.delta import DeltaMemory
from mtxl_rl.torso.long_term.interface import LongTermMemory, Sublayers
from mtxl_rl.torso.long_term.linear import AGaLiTeMemory, LinearMemory
from mtxl_rl.torso.long_term.slots import SlotMemory
from mtxl_rl.torso.long_term.tokens import TokenMemory
from mtxl_rl.torso.torso_config import TorsoConfig

__all__ = ["LONG_TERM", "LongTermMemory", "Sublayers", "build_memory"]

LONG_TERM: dict[str, type[LongTermMemory]] = {
    "delta": DeltaMemory,
    "linear": LinearMemory,
    "agalite": AGaLiTeMemory,
    "slots": SlotMemory,
    "tokens": TokenMemory,
}
"""The memory of each `torso.long_term`; each is built from a `TorsoConfig`."""


def build_memory(config: TorsoConfig) -> LongTermMemory:
    """The long-term memory that `config` describes."""
    return LONG_TERM[config.long_term](config)
