"""Start data-parallel processes and connect them.

`torchrun` starts the processes on one machine or many; `launch` does the same for one machine, with
the same elastic launcher. Each process runs the same command line.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mtxl_rl.agents.world import World
from mtxl_rl.envs.cores import num_cores

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it ends with an error."""
MIN_ENVS_PER_PROCESS = 16
"""With fewer rows the matrix products of a process are slow."""
SHUTDOWN_SECONDS = 600
"""How long the processes have to save after the launcher was asked to stop."""


def world_size() -> int:
    """Processes of the run that this process belongs to; 1 outside of torchrun and `launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_num_processes(
    legal: Sequence[int], *, num_envs: int, device: torch.device
) -> tuple[int, str]:
    """The number of processes for `num_processes=0`, and the reason.

    One for each GPU, or one for each CPU core as long as each has `MIN_ENVS_PER_PROCESS`.

    Args:
        legal: numbers among which the run's environments and minibatches divide equally.
        num_envs: environments of the run.
        device: where the run computes.
    """
    if device.type == "cuda":
        limit = torch.cuda.device_count()
        reason = f"{limit} GPUs"
    else:
        limit = max(1, min(num_cores(), num_envs // MIN_ENVS_PER_PROCESS))
        reason = f"{num_cores()} CPU cores, {num_envs} environments"
    return max(size for size in legal if size <= limit), reason


def local_device(device: torch.device) -> torch.device:
    """The device of this process: on a GPU, the one of its rank on this machine."""
    if device.type == "cuda" and world_size() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun or `launch` started: gloo on CPUs, NCCL on GPUs.

    Raises:
        RuntimeError: the other processes cannot be reached.
    """
    if world_size() == 1:
        yield World()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"process {os.environ.get('RANK')} of {world_size()} cannot reach the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def launch(arguments: Sequence[str], *, num_processes: int) -> int:
    """Run ``python arguments`` in several processes of this machine.

    SIGINT and SIGTERM are passed on, once, as SIGTERM; the processes then have
    `SHUTDOWN_SECONDS` to save. When one process fails, the others are ended.

    Returns:
        The exit code of the first process that failed, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    known = {field.name for field in fields(LaunchConfig)}
    options: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_SECONDS}  # Since torch 2.9.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"mtxl_rl_{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        **{name: option for name, option in options.items() if name in known},
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.stderr.write(f"process {rank} of {num_processes} ended with code {failure.exitcode}\n")
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as signal:
        return 128 + int(signal.sigval)
    return 0
