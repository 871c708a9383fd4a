"""A torso in a safetensors file: its weights, and the configuration that builds it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mtxl_rl.torso.factory import Torso, build_torso
from mtxl_rl.torso.torso_config import PARTS, TorsoConfig

_METADATA = "mtxl_rl.torso"
_INSIDE = "torso."
"""How the torso's weights begin in the file of something that holds a torso."""
_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module's weights."""


def save_torso(torso: nn.Module, path: Path | str, *, within: nn.Module | None = None) -> None:
    """Write a torso, or all of a module that holds it under the name `torso`, as safetensors.

    Either may be compiled (torch.compile); tied weights are written once for each name.

    Raises:
        ValueError: it is no torso, or `within` does not hold it.
        OSError: the file cannot be written.
    """
    torso = _uncompiled(torso)
    if not isinstance(torso, Torso):
        raise ValueError(f"{type(torso).__name__} is no torso; save what build_torso returned")
    if within is not None and _uncompiled(getattr(within, "torso", None)) is not torso:
        raise ValueError(
            f"{type(within).__name__} was given to save within, but its attribute `torso` is not "
            "this torso, so the file could not be loaded; name it so, or leave `within` out"
        )
    holder = torso if within is None else within
    weights = {
        name.replace(_COMPILED, ""): weight.clone(memory_format=torch.contiguous_format)
        for name, weight in holder.state_dict().items()
    }
    # NumPy's numbers, as a sweep's options may be, are not JSON's.
    config = json.dumps(asdict(torso.config), default=lambda number: number.item())
    try:
        save_file(weights, path, metadata={_METADATA: config})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load_torso(path: Path | str, *, device: torch.device | str = "cpu") -> Torso:
    """The torso of a file that `save_torso` wrote; a run's policy.safetensors is one.

    Its weights have the type that they were saved in.

    Raises:
        ValueError: the file holds no torso, or one of another version.
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
    inside = {
        name.removeprefix(_INSIDE): weight
        for name, weight in weights.items()
        if name.startswith(_INSIDE)
    }
    weights = inside or weights
    try:
        torso = build_torso(_config_of(json.loads(metadata)))
        dtype = next((weight.dtype for weight in weights.values()), None)
        torso.to(device=device, dtype=dtype).load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds a torso that this version of mtxl_rl cannot build: "
            f"{' '.join(str(error).split())}"
        ) from error
    return torso


def _config_of(fields: dict[str, Any]) -> TorsoConfig:
    parts = {name: part(**fields.pop(name, {})) for name, part in PARTS.items()}
    return TorsoConfig(**fields, **parts)


def _uncompiled(module: Any) -> Any:  # noqa: ANN401
    """What torch.compile wrapped, or `module` itself."""
    return getattr(module, "_orig_mod", module)
