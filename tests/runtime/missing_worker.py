"""A process among others, one of which fails: `missing_worker.py FAULT RANK SECONDS`.

All sum a number, then wait for process 0, then sum again. Before it waits, the process of that
rank is killed (FAULT kill), or sleeps (sleep) for twice the SECONDS after which
operations time out. For stop it stops before the second sum.
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from mtxl_rl.agents.world import LostProcessError
from mtxl_rl.runtime import distributed


def shorten_timeout(seconds: float) -> None:
    """Let operations time out, but not the start: processes start at different times."""
    meet = distributed._meet

    def meet_first(rank: int, size: int) -> Store:
        store = meet(rank, size)
        distributed.TIMEOUT = timedelta(seconds=seconds)
        return store

    distributed._meet = meet_first


def main(fault: str, rank: int, seconds: float) -> None:
    """Take part in the operations."""
    shorten_timeout(seconds)
    with distributed.joined_world(torch.device("cpu")) as world:
        world.sum(torch.zeros(1))
        is_faulty = world.rank == rank
        if is_faulty and fault == "sleep":
            time.sleep(2 * seconds)
        elif is_faulty and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        world.wait_for_first()
        if is_faulty and fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        world.sum(torch.zeros(1))


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except LostProcessError as error:
        sys.exit(str(error))
