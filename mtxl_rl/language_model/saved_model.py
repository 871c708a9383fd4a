"""Save and load a character model's training run, which then continues bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf

from mtxl_rl.agents.world import World, concatenate_rows, select_rows
from mtxl_rl.language_model.model import MemoryTransformerXL
from mtxl_rl.language_model.train_config import TrainLMConfig
from mtxl_rl.torso import MemoryState
from mtxl_rl.tracking.checkpoint import read_archive
from mtxl_rl.tracking.files import atomic_write

CHECKPOINT = "checkpoint.pt"


class Reading(NamedTuple):
    """Position up to which the rows are read and learned from."""

    update: int = 0
    """Optimiser steps so far."""
    position: int = 0
    """Characters of each row that were read since the text last began."""
    memories: MemoryState | None = None
    """The memories after them."""


def save_config(config: TrainLMConfig, run_dir: Path) -> None:
    """Write the options as YAML."""
    saved = replace(config, resume="", prompt="")
    with atomic_write(run_dir / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.structured(saved), temporary)


def save_checkpoint(
    run_dir: Path,
    model: MemoryTransformerXL,
    optimizer: torch.optim.Optimizer,
    reading: Reading,
    world: World,
) -> None:
    """Write everything that the next update depends on, on rank 0."""
    memories = None if reading.memories is None else dict(reading.memories._asdict())
    parts = world.gather_to_first(memories)
    if parts is None:
        return
    memories = concatenate_rows(parts)
    state = {
        "update": reading.update, "position": reading.position, "memories": memories,
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    with atomic_write(run_dir / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(
    model: MemoryTransformerXL,
    optimizer: torch.optim.Optimizer,
    config: TrainLMConfig,
    device: torch.device,
    world: World,
) -> Reading:
    """Restore a state of `save_checkpoint`.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: it is damaged, or does not fit the run's options.
    """
    path = Path(config.resume) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(
            f"resume={config.resume} has no {CHECKPOINT}: it was stopped before its first update; "
            "train again in another folder"
        )
    state = read_archive(path, map_location=device)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        memories = state["memories"]
        if memories is not None:
            rows = world.rows(config.batch_size // world.size)
            memories = MemoryState(**select_rows(memories, rows, num_rows=config.batch_size))
        return Reading(int(state["update"]), int(state["position"]), memories)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit {config.resume}/config.yaml "
            f"({' '.join(f'{type(error).__name__}: {error}'.split())}); restore both files"
        ) from error
