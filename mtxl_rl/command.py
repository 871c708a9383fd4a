"""What all command lines share: typed options, `--help`, checked names, `hydra.main`.

A command is a function of one dataclass. The dataclass's fields are the options, and the fields'
docstrings are the descriptions that `--help` prints. Hydra composes the dataclass. `run_command`
checks names and values first, so that an error lists the options that exist.
"""

import argparse
import ast
import difflib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints
from unittest import mock

import hydra
from hydra import compose, initialize, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from mtxl_rl.envs.names import nearest_names
from mtxl_rl.tracking.cli import PARENT, one_sentence_errors, stop_with_parent

_HELP = ("-h", "--help")
_FLAGS = ("-m", "--multirun", "--resolve", "--hydra-help", "--version")
_FLAGS_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "--info")
# What other libraries call the last part of an option's name.
_ALIASES = {
    "lr": "learning_rate", "batch_size": "num_minibatches", "epochs": "num_epochs",
    "n_envs": "num_envs", "n_steps": "rollout_length", "ent_coef": "entropy_coef",
    "vf_coef": "value_coef", "clip_range": "clip_coef", "timesteps": "total_steps",
    "total_timesteps": "total_steps", "hidden_size": "width", "d_model": "width",
    "output_dir": "run_dir", "logdir": "run_dir", "task": "env",
}  # fmt: skip
_NUMBER = re.compile(r"\d[\d_]*(?:\.\d*)?(?:[eE]\+?\d+)?")
_TYPE_NAMES = {
    int: "an integer", float: "a number", bool: "true or false",
    bool | str: "auto, true or false",
}  # fmt: skip
_LISTED = 40
"""An error lists all legal names up to this many, else the nearest ones."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Option:
    """One option of a command line."""

    name: str
    """Dotted name, as in ppo.gamma."""
    type: Any
    """The field's annotation."""
    default: Any
    """The dataclass's default; empty without one."""
    description: str
    """The field's docstring, on one line."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Command:
    """What `run_command` needs to know of a command line."""

    usage: str
    """First lines of `--help`."""
    options: Sequence[Option]
    """All legal options."""
    base: Any
    """What the options change: a dataclass, a DictConfig, or the name of a YAML file in configs."""
    groups: Sequence[str] = ()
    """Folders in configs from which an option chooses a file, as env=TMaze does."""
    required: Sequence[str] = ()
    """Groups without a default."""
    positional: str = ""
    """The list option that takes the arguments without a name."""


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
        overrides, flags, positional = _split(argv)
        command = describe(overrides)
        if set(_HELP) & set(argv):
            _print_help(command)
            return
        if positional and not command.positional:
            first = [*command.groups, command.options[0].name][0]
            raise ValueError(
                f"{positional[0]!r} is not an option; options are name=value, as in {first}=VALUE"
            )
        if positional:
            overrides.append(f"{command.positional}=[{','.join(map(_quote, positional))}]")
        is_sweep = bool({"-m", "--multirun"} & set(flags))
        overrides = check_overrides(overrides, command, is_sweep=is_sweep)
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


def as_override(name: str, value: object) -> str:
    """`name=value` in Hydra's grammar, for a value of Python."""
    return f"{name}={_in_hydra(value)}"


def _in_hydra(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_in_hydra(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_hydra, value))}]"
    return str(value) if isinstance(value, int | float) else _quote(str(value))


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


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The arguments as `name=value` overrides, Hydra's flags, and the rest."""
    overrides, flags, positional = list[str](), list[str](), list[str]()
    parts = iter(argv)
    for part in parts:
        if part in _FLAGS:
            flags.append(part)
        elif part in _FLAGS_WITH_VALUE:
            flags += [part, *[next(parts, "")]]
        elif part.startswith("-") and part not in _HELP:
            name, _, value = part.lstrip("-").partition("=")
            raise ValueError(
                f"{part!r} is not an option; options are name=value without dashes, as in "
                f"{name}={value or 'VALUE'}"
            )
        elif part not in _HELP:
            (overrides if "=" in part or part.startswith("~") else positional).append(part)
    return overrides, flags, positional


def check_overrides(
    overrides: Sequence[str], command: Command, *, is_sweep: bool = False
) -> list[str]:
    """The overrides in Hydra's grammar.

    Whole floats become integers for integer options, one value becomes a list of one for list
    options, and a path with characters of Hydra's grammar is quoted.

    Raises:
        ValueError: a name or a value is not legal. The message lists the nearest legal ones.
    """
    for group in command.required:
        if not value_of(overrides, group):
            raise ValueError(f"{group}= is missing; choose one of {', '.join(choices(group))}")
    return [_check_override(part, command, is_sweep=is_sweep) for part in overrides]


def _check_override(part: str, command: Command, *, is_sweep: bool) -> str:
    key, _, value = part.partition("=")
    name = key.lstrip("+~")
    options = {option.name: option for option in command.options}
    if name.startswith("hydra"):
        return part
    if name in command.groups:
        for choice in value.split(","):
            check_choice(name, choice, choices(name))
        return part
    if name in options:
        is_dict = get_origin(options[name].type) is dict
        key = f"++{name}" if is_dict else key  # Otherwise Hydra refuses keys that are new.
        return _in_grammar(key, value, options[name], is_sweep=is_sweep)
    dicts = [other.name for other in command.options if get_origin(other.type) is dict]
    for parent in dicts:
        if name.startswith(f"{parent}."):  # As env.kwargs.id.
            entry = name.removeprefix(f"{parent}.")
            if not entry.replace(".", "").isidentifier():
                raise ValueError(f"write {parent}={{{entry}: {value}}} instead of {part}")
            return f"++{name}={value}"
    raise ValueError(_unknown(name, [*command.groups, *options]))


def _in_grammar(key: str, value: str, option: Option, *, is_sweep: bool) -> str:
    """`key=value` as Hydra parses it to the option's type."""
    is_list = get_origin(option.type) is list
    if option.type in (int, list[int]):
        value = _NUMBER.sub(_whole, value)
    if is_list and not value.startswith(("[", "$")):
        value = f"[{value}]"
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        if option.type is not str:
            raise ValueError(_wrong_type(key, value, option)) from None
        return f"{key}={_quote(value)}"
    if override.is_sweep_override():
        if not is_sweep:
            raise ValueError(
                f"{key}={value} has several values; give one, or add -m to run all of them one "
                "after another"
            )
    elif not _has_type(override, option.type):
        raise ValueError(_wrong_type(key, value, option))
    return f"{key}={value}"


def _whole(match: re.Match[str]) -> str:
    number = float(match[0])
    return str(int(number)) if number.is_integer() else match[0]


def _has_type(override: Override, kind: Any) -> bool:  # noqa: ANN401
    value = override.value()
    if kind not in _TYPE_NAMES or (isinstance(value, str) and "${" in value):
        return True  # OmegaConf checks it.
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) in (get_args(kind) or (kind,))


def _wrong_type(key: str, value: str, option: Option) -> str:
    kind = _TYPE_NAMES.get(option.type, "a value of Hydra's grammar")
    return f"{key}={value} must be {kind}, as in {key}={_text(option.default)}"


def _quote(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def value_of(overrides: Sequence[str], name: str) -> str | None:
    """The value that the command line gives an option; None without one."""
    values = [part.partition("=")[2] for part in overrides if part.partition("=")[0] == name]
    return values[-1].strip("'\"") if values else None


def choices(group: str) -> list[str]:
    """The names of the YAML files in a folder of configs."""
    folder = resources.files("mtxl_rl.configs") / group
    names = (path.name for path in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    """Raise a ValueError that lists the legal values, the most similar first."""
    if value not in legal:
        ranked = ", ".join(nearest_names(value, legal))
        raise ValueError(f"{name}={value} is unknown; choose one of {ranked}")


def _unknown(name: str, legal: Sequence[str]) -> str:
    """The message for an unknown option, with the nearest legal names."""
    last = name.rpartition(".")[2]
    last = _ALIASES.get(last, last)
    same = [other for other in legal if other.rpartition(".")[2] == last]
    prefix = name.rpartition(".")[0] + "."
    siblings = [other for other in legal if other.startswith(prefix)]
    near = difflib.get_close_matches(name, siblings or legal, n=3, cutoff=0.8)
    message = f"option {name!r} is unknown"
    if same or near:
        return f"{message}; did you mean {' or '.join((same or near)[:3])}?"
    if siblings or len(legal) <= _LISTED:
        return f"{message}; choose one of {', '.join(siblings or legal)}"
    near = nearest_names(name, legal, count=3)
    return f"{message}; did you mean {' or '.join(near)}? --help lists all options"


def options_of(schema: type, *, prefix: str = "", env: Sequence[type] = ()) -> list[Option]:
    """The options of a dataclass: its fields, and those of nested dataclasses by dotted names.

    Args:
        schema: The dataclass.
        prefix: In front of each name.
        env: The dataclasses that its field `env` may hold.
    """
    hints, descriptions = get_type_hints(schema), field_docs(schema)
    options = list[Option]()
    for field in fields(schema):
        name, hint = prefix + field.name, hints[field.name]
        if name == "env":
            each = [option for one in env for option in options_of(one, prefix="env.")]
            options += {
                option.name: option for option in each if option.name != "env.name"
            }.values()
        elif is_dataclass(hint):
            assert isinstance(hint, type)
            options += options_of(hint, prefix=f"{name}.")
        else:
            description = descriptions.get(field.name, "")
            options.append(
                Option(name=name, type=hint, default=_default(field), description=description)
            )
    return options


def _default(field: Field[Any]) -> Any:  # noqa: ANN401
    if field.default_factory is not MISSING:
        return field.default_factory()
    return "" if field.default is MISSING else field.default


@cache
def field_docs(schema: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line."""
    docs = dict[str, str]()
    for base in reversed([base for base in schema.__mro__ if is_dataclass(base)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for node, doc in pairwise(definition.body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[node.target.id] = " ".join(str(doc.value.value).split())
    return docs


def _print_help(command: Command) -> None:
    """Print the usage, the groups' choices, and every option with default and description."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=42)
    table.add_column(overflow="fold")
    for group in command.groups:
        table.add_row(f"{group}=", ", ".join(choices(group)))
    base = None if isinstance(command.base, str) else OmegaConf.structured(command.base)
    for option in sorted(command.options, key=lambda option: "." in option.name):
        if option.name not in command.groups:
            default = option.default if base is None else OmegaConf.select(base, option.name)
            table.add_row(f"{option.name}={_text(default)}", option.description)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 100)
    console.print(command.usage, soft_wrap=True)
    console.print(table)


def _text(value: object) -> str:
    """A default as one types it."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
