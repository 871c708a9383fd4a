"""A process among others, one of which fails: `missing_worker.py FAULT RANK SECONDS [meet]`.

All sum a number, then wait for process 0, then sum again. Before it waits, the process of that
rank is killed (FAULT kill), or sleeps (sleep) for twice the SECONDS after which
operations time out. For stop it stops before the second sum. With `meet` the operations themselves
have ten minutes, as with NCCL, and the processes meet before each one.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any

import torch

from mtxl_rl.agents.world import LostProcessError
from mtxl_rl.runtime import distributed


def shorten_timeout(seconds: float, *, after: str = "_meet") -> None:
    """Let operations time out, but not the start: processes start at different times.

    Args:
        seconds: the timeout.
        after: the function of the start after which it holds.
    """
    function = getattr(distributed, after)

    def before(*arguments: Any) -> Any:  # noqa: ANN401
        result = function(*arguments)
        distributed.TIMEOUT = timedelta(seconds=seconds)
        return result

    setattr(distributed, after, before)


def main(fault: str, rank: int, seconds: float, *, meets: bool) -> None:
    """Take part in the operations."""
    shorten_timeout(seconds, after="_connect" if meets else "_meet")
    if meets:
        distributed.GPU_BACKENDS = ("gloo",)
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
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), meets="meet" in sys.argv[4:])
    except LostProcessError as error:
        sys.exit(str(error))
