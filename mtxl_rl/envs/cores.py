"""The CPU cores of this process."""

import os


def num_cores() -> int:
    """CPU cores that this process may use; on systems without an affinity, all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_cores_per_process() -> int:
    """This process's share of the cores, at least 1, where several train together on this machine.

    `LOCAL_WORLD_SIZE` is their number; torchrun and Ray Train set it.
    """
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
