"""Run a training function in the workers of Ray Train.

Ray starts the workers and connects them. When it loses one, or a machine, it calls the function
again in those that are left. It adds new ones once there is room for them. The function then
continues from its last checkpoint. An error that the function raises itself ends the run.
"""

import asyncio
import importlib
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mtxl_rl.agents.world import LostProcessError
from mtxl_rl.runtime.distributed import TIMEOUT
from mtxl_rl.tracking.cli import is_foreign, print_line, stop_requests
from mtxl_rl.tracking.files import link_or_copy

MAX_LOSSES = 100
"""Number of times that a run continues after it has lost workers. Ray does not count preempted
machines."""
FOLDER = "ray"
"""Ray's own folder in that of the run: its list of checkpoints, which are links to the run's."""


class TrainingError(Exception):
    """An error of the training function, which would come back if it were called again.

    Its arguments are a message and the notes of the error.
    """


class StopSignal:
    """A Ray actor that passes a signal from the command to the workers."""

    def __init__(self) -> None:
        self.number = 0
        self.arrived = asyncio.Event()

    async def send(self, number: int) -> None:
        """Set the signal's number."""
        self.number = number
        self.arrived.set()

    async def wait(self) -> int:
        """The signal's number, once there is one."""
        await self.arrived.wait()
        return self.number


@dataclass(kw_only=True)
class Session:
    """A worker's connection to Ray."""

    group: dist.ProcessGroup | None
    """The workers that train; None: all."""
    stop: list[int] = field(default_factory=list)
    """The signal that the command received, if any."""

    def report(self, metrics: Mapping[str, float], saved: Path | None) -> None:
        """Report metrics and a checkpoint to Ray; all workers that train call it together.

        Args:
            metrics: those of the last iteration.
            saved: the checkpoint's file, in the process that wrote it.
        """
        from ray import train
        from ray.train.collective import broadcast_from_rank_zero

        if self.group is not None:
            broadcast_from_rank_zero(_REPORT)
        checkpoint = None if saved is None else train.Checkpoint(saved.parent)

        def link(_: object, name: str) -> train.Checkpoint:
            assert saved is not None
            folder = Path(train.get_context().get_storage().experiment_fs_path) / name
            folder.mkdir(parents=True)
            link_or_copy(saved, folder / saved.name)
            return train.Checkpoint(folder)

        train.report(dict(metrics), checkpoint=checkpoint, checkpoint_upload_fn=link)


_REPORT, _END = "report", "end"
"""The messages for which workers that do not train wait."""


@contextmanager
def worker_session(legal: Sequence[int], stop_signal: Any) -> Iterator[Session | None]:  # noqa: ANN401
    """The session of this worker, or None if it has no share of the run and waited for its end.

    Args:
        legal: numbers of processes among which the run divides equally.
        stop_signal: the handle that `new_stop_signal` returns, or None.

    Raises:
        TrainingError: the block raised an error other than the loss of a process.
    """
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    logging.getLogger().setLevel(logging.WARNING)  # Ray logs each report, with all metrics.
    num_workers = int(os.environ["WORLD_SIZE"])
    size, group = max(number for number in legal if number <= num_workers), None
    if size < num_workers:
        group = dist.new_group(list(range(size)))
        os.environ["WORLD_SIZE"] = str(size)
    if int(os.environ["RANK"]) >= size:
        _wait_for_end()
        yield None
        return
    # Ray may number the GPUs in another order than the workers.
    os.environ["LOCAL_RANK"] = str(get_device().index or 0)
    session = Session(group=group)
    if stop_signal is not None:
        _watch(stop_signal, session.stop)
    try:
        yield session
    except LostProcessError:
        raise
    except Exception as error:
        notes = [*getattr(error, "__notes__", [])]
        if is_foreign(error):
            notes.insert(0, "".join(traceback.format_exception(error)))
        raise TrainingError(str(error), *notes) from error
    if group is not None:
        broadcast_from_rank_zero(_END)


def _watch(stop_signal: Any, stop: list[int]) -> None:  # noqa: ANN401
    """Add the signal to a list when it arrives."""
    import ray

    def watch() -> None:
        with suppress(ray.exceptions.RayError):
            stop.append(ray.get(stop_signal.wait.remote()))

    threading.Thread(target=watch, name="stop signal", daemon=True).start()


def _wait_for_end() -> None:
    """Take part in the reports of the workers that train."""
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    while broadcast_from_rank_zero(None) != _END:
        train.report({})


def first_worker(item: str) -> str:
    """The item of the first worker, in all workers."""
    from ray.train.collective import broadcast_from_rank_zero

    return broadcast_from_rank_zero(item)


def require_ray() -> None:
    """Import Ray Train.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("ray.train.torch")
    except ImportError as error:
        raise ImportError(
            f"launcher=ray needs Ray Train ({error}); install it with pip install 'mtxl_rl[ray]', "
            "or remove launcher=ray"
        ) from error


def _end_on_errors() -> Any:  # noqa: ANN401
    """A callback of Ray Train; a class of the module would need Ray to be imported."""
    from ray.train import UserCallback

    class EndOnErrors(UserCallback):  # type: ignore[misc]
        """Ends the run at an error of the function; reports the loss of workers."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:  # noqa: ANN401, ARG002
            for error in worker_exceptions.values():
                if isinstance(error, TrainingError):
                    raise error  # Ray does not retry after an error of a callback.
            lost = ", ".join(str(rank) for rank in sorted(worker_exceptions))
            print_line(
                f"lost worker {lost}; continuing from the last checkpoint with those that are left"
            )

    return EndOnErrors()


def trainer(
    function: Callable[[dict[str, Any]], int],
    arguments: Mapping[str, Any],
    *,
    num_workers: int,
    run_dir: Path,
    use_gpu: bool,
    num_checkpoints: int,
    callbacks: Sequence[Any] = (),
) -> Any:  # noqa: ANN401
    """A Ray Train `TorchTrainer` that calls `function(arguments)` in each worker.

    Args:
        function: a function of a module; it uses `worker_session`.
        arguments: its argument.
        num_workers: at most as many workers run, one at least.
        run_dir: the run's folder, which all machines see.
        use_gpu: whether each worker computes on a GPU.
        num_checkpoints: how many checkpoints Ray keeps.
        callbacks: further callbacks of Ray Train.
    """
    require_ray()
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
    )
    from ray.train.torch import TorchConfig, TorchTrainer

    # Relative paths of the options keep their meaning.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    return TorchTrainer(
        function,
        train_loop_config=dict(arguments),
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=(1, num_workers), use_gpu=use_gpu),
        run_config=RunConfig(
            storage_path=str(run_dir),
            name=FOLDER,
            failure_config=FailureConfig(max_failures=MAX_LOSSES),
            checkpoint_config=CheckpointConfig(num_to_keep=num_checkpoints),
            callbacks=[_end_on_errors(), *callbacks],
            # Otherwise each lost worker prints several tracebacks; Ray's log files have them.
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


def connect(**options: Any) -> None:  # noqa: ANN401
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine.

    Args:
        options: Others of `ray.init`.
    """
    require_ray()
    import ray

    if not ray.is_initialized():
        quiet = ray.LoggingConfig(log_level="ERROR")
        # Ray's own default waits for minutes for a cluster of this machine that was killed.
        options.setdefault("address", os.environ.get("RAY_ADDRESS", "local"))
        ray.init(logging_level=logging.ERROR, logging_config=quiet, **options)


def uses_gpus(device: str) -> bool:
    """Whether workers compute on GPUs: `device` is cuda, or it is auto and the cluster has GPUs."""
    import ray

    has_gpus = device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
    return device.startswith("cuda") or has_gpus


def num_available(device: str) -> int:
    """GPUs or CPUs of the cluster, one of which each worker takes.

    Raises:
        ValueError: there is none.
    """
    import ray

    kind = "GPU" if uses_gpus(device) else "CPU"
    number = int(ray.cluster_resources().get(kind, 0))
    if number < 1:
        raise ValueError(
            f"device={device} needs a {kind}, and Ray's cluster has none; choose another device="
        )
    return number


def new_stop_signal() -> Any:  # noqa: ANN401
    """Start the actor that passes a signal to the workers; its handle."""
    import ray

    return ray.remote(num_cpus=0)(StopSignal).remote()


def fit(trainer: Any, stop_signal: Any) -> int:  # noqa: ANN401
    """Run a trainer to its end; SIGINT and SIGTERM are passed to the workers.

    Returns:
        The result of the function in the first worker.

    Raises:
        RuntimeError: the training failed.
    """
    import ray

    outcome: dict[str, Any] = {}

    def run() -> None:  # In a thread of its own, where Ray does not handle Ctrl-C itself.
        try:
            outcome["result"] = trainer.fit().return_value
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="Ray Train", daemon=True)
    is_sent = False
    with stop_requests() as stop:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if stop and not is_sent:
                ray.get(stop_signal.send.remote(stop[0]))
                is_sent = True
    if "error" in outcome:
        raise _failure(outcome["error"]) from outcome["error"]
    return int(outcome["result"])


def _failure(error: Exception) -> RuntimeError:
    """The error of Ray Train, or the training function's error in it."""
    cause = getattr(error, "controller_failure", error)
    message, *notes = cause.args if isinstance(cause, TrainingError) else (str(error),)
    failure = RuntimeError(message)
    for note in notes:
        failure.add_note(note)
    return failure
