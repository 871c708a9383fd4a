"""Train an agent: `python -m mtxl_rl.train env=MemoryMaze`. A run itself is in `trainer`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.config import (
    GROUPS,
    TrainConfig,
    device_overrides,
    options_without_effect,
    train_command,
)
from mtxl_rl.runtime.distributed import (
    STOPPED,
    check_devices,
    choose_num_processes,
    launch,
    world_size,
)
from mtxl_rl.saved_agent import run_folder, saved_config
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import say
from mtxl_rl.trainer import new_run_dir, run_until_signal

USAGE = """\
python -m mtxl_rl.train env=NAME [option=value ...]           train an agent
python -m mtxl_rl.train env=NAME --help                       list env.* options too
python -m mtxl_rl.train env=NAME --cfg job                    show the values of a run
python -m mtxl_rl.train env=NAME -m seed=0,1 'run_dir=runs/${seed}'     train several, one by one
python -m mtxl_rl.train resume=RUN_DIR [option=value ...]     continue a run

The defaults below are those of the library. env=, model= and torso= change some of them.
"""


def _describe(overrides: list[str]) -> Command:
    """The command of a new run; with resume=, one whose defaults are the saved run's values."""
    source = value_of(overrides, "resume")
    if source is None:
        overrides[:0] = device_overrides(overrides)
        return train_command(overrides, usage=USAGE)
    if not source:
        raise ValueError(
            "resume= is empty; give the folder of a run or a checkpoint in it, or remove it to "
            "train a new run"
        )
    for part in overrides:
        if part.startswith((*(f"{group}=" for group in GROUPS), "torso.", "env.name=", "seed=")):
            raise ValueError(
                f"Cannot change {part.partition('=')[0]} when resuming. Remove it, or start a new "
                "run."
            )
    saved = replace(saved_config(Path(source)), run_dir=str(run_folder(Path(source)) or ""))
    return Command(usage=USAGE, options=options_of(TrainConfig, env=[type(saved.env)]), base=saved)


def _run_command(config: TrainConfig) -> None:
    overrides = HydraConfig.get().overrides.task
    if world_size() == 1:
        for option, cause in options_without_effect(config, overrides):
            say(f"{option} has no effect with {cause}")
        num_processes = _num_processes(config)
        if num_processes > 1:
            _launch(config, overrides, num_processes=num_processes)
            return
    _, signal_number = run_until_signal(config)
    if signal_number:  # `train && evaluate` stops here, and so does a sweep.
        raise SystemExit(128 + signal_number)


def _launch(config: TrainConfig, overrides: Sequence[str], *, num_processes: int) -> None:
    """Train in several processes; when one fails, name the checkpoint to continue from."""
    run_dir = Path(config.run_dir or new_run_dir(config))
    argv = ["-m", "mtxl_rl.train", *overrides, f"run_dir={run_dir}"]
    exit_code = launch(argv, num_processes=num_processes)
    newest = checkpoint.latest(run_dir)
    if exit_code and exit_code not in STOPPED and newest is not None:
        sys.stderr.write(
            f"the last checkpoint is {newest}; continue with: python -m mtxl_rl.train "
            f"resume={run_dir}\n"
        )
    if exit_code:
        raise SystemExit(exit_code)


def _num_processes(config: TrainConfig) -> int:
    """`num_processes`, or the fastest number on this machine if it is 0; 1 for a dry run."""
    if config.dry_run:
        return 1
    device = config.torch_device()
    if config.num_processes:
        check_devices(config.num_processes, device)
        return config.num_processes
    size, reason = choose_num_processes(
        config.legal_processes(), num_envs=config.num_envs, device=device
    )
    say(f"num_processes={size}: {reason}")
    return size


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=_run_command)


if __name__ == "__main__":
    # Launchers of sweeps pickle functions; those of the imported module by their names.
    from mtxl_rl.train import main as imported_main

    imported_main()
