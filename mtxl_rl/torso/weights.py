"""A torso in a safetensors file: its weights, and the configuration that builds it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mtxl_rl.torso.build import Torso, build_torso
from mtxl_rl.torso.config import SlotsConfig, SublayersConfig, TokensConfig, TorsoConfig

_METADATA = "mtxl_rl.torso"
_INSIDE = "torso."
"""How the torso's weights begin in the file of something that holds a torso."""
_PARTS = {"sublayers": SublayersConfig, "slots": SlotsConfig, "tokens": TokensConfig}


def save_torso(torso: Torso, path: Path | str, *, within: nn.Module | None = None) -> None:
    """Write `torso`, or all of a module that holds it under the name `torso`, as safetensors.

    Raises:
        OSError: the file cannot be written.
    """
    holder = torso if within is None else within
    weights = {name: weight.contiguous() for name, weight in holder.state_dict().items()}
    try:
        save_file(weights, path, metadata={_METADATA: json.dumps(asdict(torso.config))})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load_torso(path: Path | str, *, device: torch.device | str = "cpu") -> Torso:
    """The torso of a file that `save_torso` wrote; a run's policy.safetensors is one.

    Raises:
        ValueError: the file holds no torso.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = (file.metadata() or {}).get(_METADATA)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if metadata is None:
        raise ValueError(f"{path} says of no torso; write it with mtxl_rl.save_torso")
    fields: dict[str, Any] = json.loads(metadata)
    parts = {name: part(**fields.pop(name)) for name, part in _PARTS.items()}
    torso = build_torso(TorsoConfig(**fields, **parts)).to(device)
    inside = {
        name.removeprefix(_INSIDE): weight
        for name, weight in weights.items()
        if name.startswith(_INSIDE)
    }
    torso.load_state_dict(inside or weights)
    return torso
