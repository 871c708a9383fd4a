"""A training run in workers of Ray Train: `launcher=ray`, and `ray_trainer` for Ray Tune."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtxl_rl.agents.world import World
from mtxl_rl.config import TrainConfig
from mtxl_rl.runtime import ray_train
from mtxl_rl.runtime.distributed import MIN_ENVS_PER_PROCESS
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import print_line
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.training.trainer import check_start, new_run_dir, run_until_signal


def train_with_ray(config: TrainConfig) -> int:
    """Train in workers of Ray Train; return the number of the signal that stopped the run, or 0.

    Raises:
        ImportError: Ray Train is not installed.
        ValueError: a setting is not legal, or the cluster has no GPU.
        RuntimeError: the training failed.
    """
    ray_train.require_ray()
    run_dir = Path(config.run_dir or new_run_dir(config)).resolve()
    config = replace(config, run_dir=str(run_dir))
    with run_lock(run_dir):
        check_start(config, run_dir, World())
        # Of the command before. Ray would continue its list, in which files may be missing by now.
        shutil.rmtree(run_dir / ray_train.FOLDER, ignore_errors=True)
    ray_train.connect()
    num_workers = _num_workers(config)
    stop_signal = ray_train.new_stop_signal()
    trainer = ray_trainer(config, num_workers=num_workers, stop_signal=stop_signal)
    try:
        return ray_train.fit(trainer, stop_signal)
    except RuntimeError as error:
        if checkpoint.latest(run_dir) is not None:
            error.add_note(f"continue with: python -m mtxl_rl.train resume={run_dir}")
        raise


def _num_workers(config: TrainConfig) -> int:
    """`num_processes`, or the fastest number on Ray's cluster if it is 0."""
    available = ray_train.num_available(config.device)
    if config.num_processes:
        if config.num_processes > available:
            print_line(
                f"num_processes={config.num_processes}, and Ray's cluster has room for {available} "
                "workers: the run starts with those, and takes more when machines join"
            )
        return config.num_processes
    limit = available
    if not ray_train.uses_gpus(config.device):
        limit = min(available, max(1, config.num_envs // MIN_ENVS_PER_PROCESS))
    size = max(number for number in config.legal_processes() if number <= limit)
    print_line(f"num_processes={size}: Ray's cluster has room for {available} workers")
    return size


def ray_trainer(
    config: TrainConfig,
    *,
    num_workers: int,
    stop_signal: Any = None,  # noqa: ANN401
    callbacks: Sequence[Any] = (),
) -> Any:  # noqa: ANN401
    """A Ray Train `TorchTrainer` for a run. Its checkpoints are links to those of the run.

    Args:
        config: the run's options. `run_dir` is a folder that all machines see.
        num_workers: at most so many workers train, and at least one.
        stop_signal: see `ray_train.new_stop_signal`.
        callbacks: further callbacks of Ray Train.
    """
    run_dir = Path(config.run_dir).resolve()
    arguments = {"config": replace(config, run_dir=str(run_dir)), "stop_signal": stop_signal}
    return ray_train.trainer(
        _train_in_worker,
        arguments,
        num_workers=num_workers,
        run_dir=run_dir,
        use_gpu=ray_train.uses_gpus(config.device),
        num_checkpoints=config.keep_checkpoints,
        callbacks=callbacks,
    )


def _train_in_worker(arguments: Mapping[str, Any]) -> int:
    """Train in a worker of Ray Train; return the number of the signal that stopped it, or 0."""
    config = _continued(arguments["config"])
    legal = config.legal_processes()
    with ray_train.worker_session(legal, arguments["stop_signal"]) as session:
        return 0 if session is None else run_until_signal(config, session=session)[1]


def _continued(config: TrainConfig) -> TrainConfig:
    """The options; after a worker was lost, those that continue from the last checkpoint."""
    run_dir = Path(config.run_dir)
    newest = checkpoint.latest(run_dir)
    # The first worker has written the checkpoints, and others may see them later.
    path = ray_train.first_worker("" if newest is None else str(newest))
    if path:
        return replace(config, resume=path)
    if os.environ["RANK"] == "0":  # Of workers that were lost before the first checkpoint.
        (run_dir / "config.yaml").unlink(missing_ok=True)
    return config
