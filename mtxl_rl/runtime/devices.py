"""The devices that options name, and the one that each process uses."""

import os

import torch


def find_device(name: str) -> torch.device:
    """The torch device of a name: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device={name} is unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} does not exist: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use device=cpu, or install a CUDA build"
        )
    return torch.device(name)


def world_size() -> int:
    """Processes of the run that this process belongs to; 1 outside of torchrun and `launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: torch.device) -> torch.device:
    """The device of this process: on a GPU, the one of its rank on this machine."""
    if device.type == "cuda" and world_size() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
