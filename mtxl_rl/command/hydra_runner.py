"""Composes a command's dataclass with Hydra, and runs the command."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import hydra
from hydra import compose, initialize, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtxl_rl.command.options import Command, print_help
from mtxl_rl.command.overrides import HELP, check_overrides, quote, split_arguments
from mtxl_rl.tracking.cli import PARENT, one_sentence_errors, stop_with_parent


def run_command(
    argv: Sequence[str] | None,
    *,
    describe: Callable[[list[str]], Command],
    run: Callable[[Any], object],
) -> None:
    """Compose a command's dataclass from its arguments with `hydra.main`, and call `run` with it.

    Args:
        argv: Arguments; None: the process's own.
        describe: Returns the command; it is passed the `name=value` arguments.
        run: The program. Its errors become one sentence and exit code 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parent = os.environ.pop(PARENT, "")
    if parent:
        stop_with_parent(int(parent))
    with one_sentence_errors():
        overrides, flags, positional = split_arguments(argv)
        command = describe(overrides)
        if set(HELP) & set(argv):
            print_help(command)
            return
        if positional and not command.positional:
            first = [*command.groups, command.options[0].name][0]
            raise ValueError(
                f"{positional[0]!r} is not an option; options are name=value, as in {first}=VALUE"
            )
        if positional:
            overrides.append(f"{command.positional}=[{','.join(map(quote, positional))}]")
        is_sweep = bool({"-m", "--multirun"} & set(flags))
        overrides = check_overrides(overrides, command, is_sweep=is_sweep)
        if not isinstance(command.base, str):
            overrides = [part for part in overrides if part.partition("=")[0] not in command.groups]
        _run_hydra(command, [*overrides, *flags], run)


def compose_command(command: Command, overrides: Sequence[str]) -> Any:  # noqa: ANN401
    """A command's dataclass with overrides (`name=value`), composed without a command line.

    Raises:
        ValueError: a name or a value is not legal. The message lists the legal ones.
    """
    overrides = check_overrides(overrides, command)
    with fresh_hydra(), readable_errors():
        if isinstance(command.base, str):
            name = command.base
            context: Any = initialize_config_module("mtxl_rl.configs", version_base="1.3")
        else:  # Without the folder: Hydra takes an option for a group that has its name.
            name, context = _store(command.base), initialize(None, version_base="1.3")
        with context:
            return OmegaConf.to_object(compose(name, overrides=overrides))


def _run_hydra(command: Command, argv: Sequence[str], run: Callable[[Any], object]) -> None:
    path: str | None

    def task(config: DictConfig) -> None:
        with one_sentence_errors():  # Hydra would add a line of its own.
            with readable_errors():
                composed = OmegaConf.to_object(config)
            run(composed)

    if isinstance(command.base, str):
        path, name = "pkg://mtxl_rl.configs", command.base
    else:
        # Without a path: Hydra takes an option for a group if a folder in configs has its name.
        path, name = None, _store(command.base)
    # Python 3.14 checks help texts when they are added, and one of Hydra's is not a string
    # (facebookresearch/hydra#3121). Hydra reads sys.argv; with HYDRA_FULL_ERROR it raises its
    # errors instead of printing them.
    with (
        mock.patch.object(sys, "argv", [sys.argv[0], *argv]),
        mock.patch.object(argparse.ArgumentParser, "_check_help", create=True),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1"),
        fresh_hydra(),
        readable_errors(),
    ):
        hydra.main(version_base="1.3", config_path=path, config_name=name)(task)()


def _store(base: object) -> str:
    """Store a command's dataclass in Hydra's ConfigStore; the name of the config."""
    store = ConfigStore.instance()
    store.store(name="schema", node=base)
    # As in configs/train.yaml: the command writes its own files, Hydra writes none.
    defaults = ["schema", {"override hydra/job_logging": "disabled"},
                {"override hydra/hydra_logging": "disabled"}, "_self_"]  # fmt: skip
    outputs = {"output_subdir": None, "run": {"dir": "."}, "sweep": {"dir": "runs", "subdir": "."}}
    store.store(name="command", node={"defaults": defaults, "hydra": outputs})
    return "command"


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Let a command or a function compose inside an application that uses Hydra itself."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into a ValueError of one sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_sentence(error)) from error


def _one_sentence(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ValueError) and not isinstance(cause, OmegaConfBaseException):
        return str(cause)
    first = str(cause).splitlines()[0]
    key = getattr(cause, "full_key", None)
    return f"option {key}: {first}" if key else first
