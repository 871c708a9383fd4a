"""Start data-parallel processes and connect them.

`launch` starts the processes of one machine, torchrun those of one or many; Slurm starts torchrun.
Each process runs the same command line. Ray's workers run a function: see `ray_train`.
"""

import importlib.metadata
import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from mtxl_rl.agents.world import World
from mtxl_rl.envs.cores import num_cores
from mtxl_rl.runtime.devices import world_size
from mtxl_rl.tracking.cli import console, print_line, show_cursor, stop_with_parent

TIMEOUT = timedelta(minutes=10)
"""Time for which a process waits for the others before it ends with an error."""
NO_LIMIT = timedelta(days=365)
GPU_BACKENDS = ("nccl",)
"""Backends whose operations wait in the GPU, where no error names the missing process. Before each
of them the processes meet in gloo."""
MIN_ENVS_PER_PROCESS = 16
"""Fewest rows with which the matrix products of a process are fast."""
RUN_ID = "mtxl_rl_"
"""First part of the name that `launch` gives to its processes' run; torchrun has other names."""
SHUTDOWN_SECONDS = 600
"""Seconds that the processes have for saving after the launcher received a signal."""
POLL_SECONDS = 0.1
"""Seconds between two looks of the launcher at its processes."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a process that saved and ended because a signal asked for it."""


def choose_num_processes(
    legal: Sequence[int], *, num_envs: int, device: torch.device
) -> tuple[int, str]:
    """The number of processes that `num_processes=0` chooses, and the reason.

    One for each GPU, or one for each CPU core as long as each has `MIN_ENVS_PER_PROCESS`.

    Args:
        legal: numbers among which the run's environments and minibatches divide equally.
        num_envs: environments of the run.
        device: where the run computes.
    """
    if device.type == "cuda":
        limit = torch.cuda.device_count()
        reason = f"one per GPU ({limit})"
    else:
        limit = max(1, min(num_cores(), num_envs // MIN_ENVS_PER_PROCESS))
        reason = (
            f"one per CPU core ({num_cores()}), if each has {MIN_ENVS_PER_PROCESS} of the "
            f"{num_envs} environments"
        )
    size = max(size for size in legal if size <= limit)
    if size < limit:
        reason += f"; {limit} cannot have equal shares"
    return size, reason


def is_first_process() -> bool:
    """Whether this is process 0 of those that the user started; `launch` starts others."""
    if os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(RUN_ID):
        return False
    return world_size() == 1 or os.environ.get("RANK") == "0"


@contextmanager
def joined_world(
    device: torch.device,
    *,
    options: Mapping[str, object] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Iterator[World]:
    """Join the processes that torchrun or `launch` started: gloo on CPUs, NCCL on GPUs.

    Where another launcher has connected the processes already, as Ray does, they are used as they
    are. Only the first process prints. The processes' options and library versions must be the
    same.

    Args:
        device: where this process computes.
        options: what must be the same, in addition to the versions.
        group: the processes of the run, if they are only some of those that are connected.

    Raises:
        ValueError: there are fewer GPUs than processes.
        RuntimeError: the other processes cannot be reached, or have other options or versions.
    """
    size = world_size()
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device)
        torch.cuda.set_device(device)  # NCCL gathers objects through the current device.
    if not dist.is_initialized():
        _connect("nccl" if device.type == "cuda" else "gloo", size)
    rank, backend = dist.get_rank(group), dist.get_backend(group)
    console.quiet = rank > 0
    store = PrefixStore("mtxl_rl/world", dist.distributed_c10d._get_default_store())
    meeting_group = _gloo_group(size, TIMEOUT) if backend in GPU_BACKENDS else None
    world = World(rank, size, group, _gloo_group(size, NO_LIMIT), meeting_group, store)
    try:
        world.check_equal(
            {**library_versions(), **(options or {})},
            remedy="start all processes with the same options and versions",
        )
        yield world
    except BaseException:
        # Where another process is gone, NCCL would wait for it. Ray may have disconnected already.
        if backend == "gloo" and dist.is_initialized():
            dist.destroy_process_group()
        raise
    # The launcher ends the others when one has ended, and rank 0 may be saving.
    dist.barrier(group)
    dist.destroy_process_group()


def _gloo_group(size: int, timeout: timedelta) -> dist.ProcessGroup:
    """The run's processes, in a group of their own."""
    ranks = list(range(size))  # Workers of Ray that have no share of the run do not take part.
    return dist.new_group(ranks, timeout=timeout, backend="gloo", use_local_synchronization=True)


def _connect(backend: str, size: int) -> None:
    """Connect this process to the others that were started with it.

    Raises:
        ValueError: the environment lacks one of torchrun's variables.
        RuntimeError: the other processes cannot be reached.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={size} is set without {', '.join(missing)}; start the processes with "
            "torchrun or num_processes=, or unset WORLD_SIZE"
        )
    rank = int(os.environ["RANK"])
    store = _meet(rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    stop_with_parent(os.getppid())


def _meet(rank: int, size: int) -> Store:
    """The store in which the processes find each other, once all have arrived.

    Raises:
        RuntimeError: the port is in use, or some processes do not arrive within `TIMEOUT`.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun and `launch` hold the store themselves, and set this variable.
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        tcp_store = TCPStore(
            address, port, is_master=is_host, timeout=TIMEOUT, wait_for_workers=False
        )
    except (RuntimeError, ValueError) as error:
        remedy = "choose another MASTER_PORT" if is_host else "is process 0 running there?"
        raise RuntimeError(
            f"process {rank} of {size} cannot {'listen on' if is_host else 'reach'} "
            f"{address}:{port}: {_first_line(error)}; {remedy}"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"mtxl_rl/{attempt}", tcp_store)
    arrivals = {other: f"arrived/{other}" for other in range(size)}
    store.set(arrivals[rank], "")
    try:
        store.wait(list(arrivals.values()), TIMEOUT)
    except RuntimeError as error:
        absent = [str(other) for other, key in arrivals.items() if not store.check([key])]
        raise RuntimeError(
            f"process {rank} of {size} waited {TIMEOUT.total_seconds():g} s at {address}:{port} "
            f"for process {', '.join(absent)}; see why it did not start"
        ) from error
    return store


def library_versions() -> dict[str, str]:
    """Versions that must be the same in all processes."""
    names = ("mtxl_rl", "torch", "numpy", "gymnasium")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {"the version of Python": platform.python_version()} | {
        f"the version of {name}": version for name, version in installed.items()
    }


def check_devices(num_local: int, device: torch.device) -> None:
    """Check that each of this machine's processes has a GPU, or report that it has no core.

    Raises:
        ValueError: there are fewer GPUs than processes that compute on them.
    """
    if device.type == "cuda" and num_local > torch.cuda.device_count():
        raise ValueError(
            f"num_processes={num_local} needs as many GPUs on this machine, and torch sees "
            f"{torch.cuda.device_count()}; give num_processes={torch.cuda.device_count()} or fewer"
        )
    if device.type == "cpu" and num_local > num_cores():
        print_line(
            f"num_processes={num_local} share {num_cores()} CPU cores and wait for one another; "
            f"num_processes={num_cores()} is faster"
        )


def launch(arguments: Sequence[str], *, num_processes: int) -> int:
    """Run ``python arguments`` in several processes of this machine, by torch's elastic launcher.

    SIGINT and SIGTERM are passed on; the processes then have `SHUTDOWN_SECONDS` to save. When a
    process fails, the others end too: without it they cannot continue.

    Returns:
        128 plus the number of the signal, the exit code of the process that failed first, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    known = {field.name for field in fields(LaunchConfig)}
    options: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_SECONDS}  # From torch 2.9 on.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"{RUN_ID}{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=POLL_SECONDS,
        **{name: option for name, option in options.items() if name in known},
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _report_failure(rank, failure.exitcode, num_processes=num_processes)
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        show_cursor()
    return 0


def _report_failure(rank: int, code: int, *, num_processes: int) -> int:
    """Name the process that failed first, unless a signal asked it to stop; its exit code."""
    if code not in STOPPED:
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        sys.stderr.write(f"process {rank} of {num_processes} {how}\n")
    return code if code > 0 else 128 - code


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
