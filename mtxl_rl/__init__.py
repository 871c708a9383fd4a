"""Memory for reinforcement learning: a gated Memory Transformer-XL and its PPO agent.

The public names load on first use, so that `import mtxl_rl` stays cheap.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # What type checkers and editors see of the names that load on first use.
    from mtxl_rl.agent import Agent
    from mtxl_rl.language_model.autoregressive_wrapper import AutoregressiveWrapper
    from mtxl_rl.language_model.causal_lm import CausalLM
    from mtxl_rl.language_model.model import MemoryTransformerXL
    from mtxl_rl.runtime.exported_policy import ExportedPolicy
    from mtxl_rl.torso import (
        Cache,
        MemoryState,
        MemoryTransformer,
        SlotsConfig,
        SublayersConfig,
        TokensConfig,
        TorsoConfig,
        build_torso,
        load_torso,
        match_parameters,
        save_torso,
    )
    from mtxl_rl.train import train
    from mtxl_rl.training.callbacks import Callback, StopTraining
    from mtxl_rl.training.trained_run import TrainedRun

    __version__: str

_HOMES = {
    "Agent": "mtxl_rl.agent",
    "Cache": "mtxl_rl.torso",
    "Callback": "mtxl_rl.training.callbacks",
    "AutoregressiveWrapper": "mtxl_rl.language_model.autoregressive_wrapper",
    "CausalLM": "mtxl_rl.language_model.causal_lm",
    "ExportedPolicy": "mtxl_rl.runtime.exported_policy",
    "MemoryState": "mtxl_rl.torso",
    "MemoryTransformer": "mtxl_rl.torso",
    "MemoryTransformerXL": "mtxl_rl.language_model.model",
    "SlotsConfig": "mtxl_rl.torso",
    "StopTraining": "mtxl_rl.training.callbacks",
    "SublayersConfig": "mtxl_rl.torso",
    "TokensConfig": "mtxl_rl.torso",
    "TorsoConfig": "mtxl_rl.torso",
    "TrainedRun": "mtxl_rl.training.trained_run",
    "build_torso": "mtxl_rl.torso",
    "load_torso": "mtxl_rl.torso",
    "match_parameters": "mtxl_rl.torso",
    "save_torso": "mtxl_rl.torso",
}

__all__ = [
    "Agent",
    "AutoregressiveWrapper",
    "Cache",
    "Callback",
    "CausalLM",
    "ExportedPolicy",
    "MemoryState",
    "MemoryTransformer",
    "MemoryTransformerXL",
    "SlotsConfig",
    "StopTraining",
    "SublayersConfig",
    "TokensConfig",
    "TorsoConfig",
    "TrainedRun",
    "build_torso",
    "load_torso",
    "match_parameters",
    "save_torso",
    "train",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name from its home (PEP 562)."""
    if name == "__version__":
        return importlib.metadata.version("mtxl_rl")
    if name == "train":  # The module, which can be called as the function in it.
        return importlib.import_module("mtxl_rl.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'mtxl_rl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names too, those not loaded yet included."""
    return sorted({*globals(), *__all__})
