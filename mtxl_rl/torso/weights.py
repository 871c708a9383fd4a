"""Saves and loads a torso, its weights and its configuration, as a safetensors file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mtxl_rl.torso.factory import Torso, build_torso
from mtxl_rl.torso.torso_config import TorsoConfig, torso_config_from

_METADATA = "mtxl_rl.torso"
_INSIDE = "torso."
"""Prefix of the torso's weights in the file of a module that contains it."""
_COMPILED = "_orig_mod."
"""Prefix that torch.compile adds to the names of a module's weights."""


def save_torso(
    torso: nn.Module,
    path: Path | str,
    *,
    within: nn.Module | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a torso, or a whole module with the attribute `torso`, as safetensors.

    Both may be compiled (torch.compile). Tied weights are written once per name.

    Args:
        torso: what `build_torso` returned.
        path: the file to write.
        within: the module whose weights to write too.
        metadata: more texts for the file's metadata, by name.

    Raises:
        ValueError: it is not a torso, or not the attribute `torso` of `within`.
        OSError: the file cannot be written.
    """
    torso = _uncompiled(torso)
    if not isinstance(torso, Torso):
        raise ValueError(f"{type(torso).__name__} is not a torso; save what build_torso returned")
    if within is not None and _uncompiled(getattr(within, "torso", None)) is not torso:
        raise ValueError(
            f"{type(within).__name__}.torso is not this torso, so the file could not be loaded; "
            "name the attribute `torso`, or leave out `within`"
        )
    holder = torso if within is None else within
    weights = {
        name.replace(_COMPILED, ""): weight.clone(memory_format=torch.contiguous_format)
        for name, weight in holder.state_dict().items()
    }
    # A sweep's options can be NumPy numbers, which json does not serialise.
    config = json.dumps(asdict(torso.config), default=lambda number: number.item())
    try:
        save_file(weights, path, metadata={**(metadata or {}), _METADATA: config})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load_torso(path: Path | str, *, device: torch.device | str = "cpu") -> Torso:
    """The torso in a file of `save_torso`, such as a run's policy.safetensors.

    Its weights have the saved dtype.

    Raises:
        ValueError: the file contains no torso, or one of another version.
        OSError: the file cannot be read.
    """
    metadata, weights = read_safetensors(path, _METADATA, device=device)
    if metadata is None:
        raise ValueError(f"{path} contains no torso; write it with mtxl_rl.save_torso")
    inside = {
        name.removeprefix(_INSIDE): weight
        for name, weight in weights.items()
        if name.startswith(_INSIDE)
    }
    weights = inside or weights
    try:
        config = torso_config_from(json.loads(metadata))
        check_weights(config, lambda: build_torso(config), weights)
        torso = build_torso(config)
        dtype = next((weight.dtype for weight in weights.values()), None)
        torso.to(device=device, dtype=dtype).load_state_dict(weights)
    except BUILD_ERRORS as error:
        raise ValueError(
            f"{path} contains a torso that this version of mtxl_rl cannot build: "
            f"{' '.join(str(error).split())}"
        ) from error
    return torso


def read_safetensors(
    path: Path | str, key: str, *, device: torch.device | str = "cpu"
) -> tuple[str | None, dict[str, Tensor]]:
    """A file's metadata under `key`, and its tensors by name.

    Raises:
        ValueError: it is damaged, or of another format.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = (file.metadata() or {}).get(key)
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file: {error}") from error


BUILD_ERRORS = (
    TypeError, AttributeError, ValueError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip
"""Errors of a file with wrong options or weights, in `check_weights` or when it is built."""


def check_weights(
    config: TorsoConfig, build: Callable[[], nn.Module], weights: Mapping[str, Any]
) -> None:
    """Raise the error of `load_state_dict` before the module's memory is allocated.

    A file's options may describe a module that is larger than its weights by any factor.

    Args:
        config: the torso's configuration.
        build: builds the torso, or a module that contains it.
        weights: the file's tensors by name.

    Raises:
        BUILD_ERRORS: the weights do not fit the module.
    """
    # Every layer and every round has at least one weight.
    for name in ("num_layers", "mogrifier_rounds"):
        if getattr(config, name) > len(weights):
            raise ValueError(
                f"torso.{name}={getattr(config, name)} is more than the {len(weights)} weights"
            )
    with torch.device("meta"):
        module = build()
    module.load_state_dict({name: weight.to("meta") for name, weight in weights.items()})


def _uncompiled(module: Any) -> Any:  # noqa: ANN401
    """The module that torch.compile wrapped, or `module` itself."""
    return getattr(module, "_orig_mod", module)
