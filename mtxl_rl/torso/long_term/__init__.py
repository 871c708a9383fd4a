"""Long-term memories: a module for each kind, and the table from names to factories."""

from collections.abc import Callable

from mtxl_rl.torso.long_term.delta import DeltaMemory
from mtxl_rl.torso.long_term.interface import LongTermMemory, Slots
from mtxl_rl.torso.long_term.linear import LinearMemory, agalite_memory, linear_memory
from mtxl_rl.torso.long_term.slots import SlotMemory
from mtxl_rl.torso.long_term.tokens import Control, TokenMemory
from mtxl_rl.torso.torso_config import TorsoConfig

__all__ = [
    "LONG_TERM",
    "Control",
    "DeltaMemory",
    "LinearMemory",
    "LongTermMemory",
    "SlotMemory",
    "Slots",
    "TokenMemory",
    "build_memory",
]

LONG_TERM: dict[str, Callable[[TorsoConfig], LongTermMemory]] = {
    "delta": DeltaMemory,
    "linear": linear_memory,
    "agalite": agalite_memory,
    "slots": SlotMemory,
    "tokens": TokenMemory,
}
"""The factory of each `torso.long_term`; `torso_config.DECAYS` lists those that have a decay."""


def build_memory(config: TorsoConfig) -> LongTermMemory:
    """The long-term memory that `config` describes."""
    return LONG_TERM[config.long_term](config)
