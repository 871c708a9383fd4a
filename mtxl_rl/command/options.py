"""The options of a command: a dataclass's fields, with their docstrings, and `--help`."""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, get_type_hints

from omegaconf import ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table


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
    """A description of a command line, for `run_command`."""

    usage: str
    """First lines of `--help`."""
    options: Sequence[Option]
    """All legal options."""
    base: Any
    """The config that the options change: a dataclass, a DictConfig, or the name of a YAML file in
    configs."""
    groups: Sequence[str] = ()
    """Folders in configs from which an option chooses a file, as env=TMaze does. If `base` is not a
    YAML file, it already holds the choice."""
    required: Sequence[str] = ()
    """Groups without a default."""
    positional: str = ""
    """The list option that takes the arguments without a name."""


def choices(group: str) -> list[str]:
    """The names of the YAML files in a folder of configs."""
    folder = resources.files("mtxl_rl.configs") / group
    names = (path.name for path in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


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
            all_options = [
                option for env_schema in env for option in options_of(env_schema, prefix="env.")
            ]
            options += {
                option.name: option for option in all_options if option.name != "env.name"
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


def print_help(command: Command) -> None:
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
            table.add_row(f"{option.name}={default_text(default)}", option.description)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 100)
    console.print(command.usage, soft_wrap=True)
    console.print(table)


def default_text(value: object) -> str:
    """A default as one types it."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(default_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
