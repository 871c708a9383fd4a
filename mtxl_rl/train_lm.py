"""Train a character model: `python -m mtxl_rl.train_lm text=FILE`, or on the recall text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.config_files import from_document, read_yaml
from mtxl_rl.language_model.character_trainer import run_until_signal
from mtxl_rl.language_model.train_config import TrainLMConfig
from mtxl_rl.runtime.devices import find_device, world_size
from mtxl_rl.runtime.distributed import check_devices, launch

USAGE = """\
python -m mtxl_rl.train_lm [text=FILE] [option=value ...]     train a character model
python -m mtxl_rl.train_lm resume=RUN_DIR [updates=N]         continue a run
python -m mtxl_rl.train_lm resume=RUN_DIR prompt=TEXT         generate with a trained model
"""
_CHANGEABLE = ("resume", "updates", "evaluate_every", "prompt", "num_generated", "device",
               "num_processes")  # fmt: skip


def _describe(overrides: list[str]) -> Command:
    """The command of a new run; with resume=, one whose defaults are the saved run's values."""
    options, source = options_of(TrainLMConfig), value_of(overrides, "resume")
    if not source:
        return Command(usage=USAGE, options=options, base=TrainLMConfig)
    path = Path(source) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"resume={source} is not a run of mtxl_rl.train_lm: {path} does not exist; give a "
            "run's folder"
        )
    names = {option.name for option in options}
    for name in (part.partition("=")[0] for part in overrides):
        if name in names and name not in _CHANGEABLE:
            raise ValueError(f"Cannot change {name} when resuming. Remove it, or start a new run.")
    saved = from_document(TrainLMConfig, read_yaml(path))
    return Command(usage=USAGE, options=options, base=replace(saved, run_dir=source))


def _run(config: TrainLMConfig) -> None:
    if world_size() == 1 and config.num_processes > 1:
        check_devices(config.num_processes, find_device(config.device))
        overrides = HydraConfig.get().overrides.task
        exit_code = launch(
            ["-m", "mtxl_rl.train_lm", *overrides], num_processes=config.num_processes
        )
        if exit_code:
            raise SystemExit(exit_code)
        return
    signal_number = run_until_signal(config)
    if signal_number:
        raise SystemExit(128 + signal_number)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=_run)


if __name__ == "__main__":
    main()
