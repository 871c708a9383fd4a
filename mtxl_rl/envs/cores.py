"""The CPU cores of this process."""

import os


def num_cores() -> int:
    """CPU cores that this process may use; on systems without an affinity, all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
