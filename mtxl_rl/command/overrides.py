"""Overrides, `name=value` as one types them: names and values are checked before Hydra runs."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from mtxl_rl.command.options import Command, Option, choices, default_text
from mtxl_rl.envs.names import check_choice, nearest_names

HELP = ("-h", "--help")
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


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The arguments as `name=value` overrides, Hydra's flags, and the rest."""
    overrides, flags, positional = list[str](), list[str](), list[str]()
    parts = iter(argv)
    for part in parts:
        if part in _FLAGS:
            flags.append(part)
        elif part in _FLAGS_WITH_VALUE:
            flags += [part, next(parts, "")]
        elif part.startswith("-") and part not in HELP:
            name, _, value = part.lstrip("-").partition("=")
            raise ValueError(
                f"{part!r} is not an option; options are name=value without dashes, as in "
                f"{name}={value or 'VALUE'}"
            )
        elif part not in HELP:
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
        return f"{key}={quote(value)}"
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
    return f"{key}={value} must be {kind}, as in {key}={default_text(option.default)}"


def quote(text: str) -> str:
    """A string in Hydra's quotes."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def value_of(overrides: Sequence[str], name: str) -> str | None:
    """The value that the command line gives an option; None without one."""
    values = [part.partition("=")[2] for part in overrides if part.partition("=")[0] == name]
    return values[-1].strip("'\"") if values else None


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
    return str(value) if isinstance(value, int | float) else quote(str(value))
