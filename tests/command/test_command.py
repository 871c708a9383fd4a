"""The command line that all commands share."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mtxl_rl.envs.__main__ as table_of_tasks
from mtxl_rl import compare, evaluate, export, get_textures, play, suite, train, train_lm
from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.compose import compose_config
from mtxl_rl.config_files import save_config


@dataclass
class Inner:
    """A nested dataclass."""

    rate: float = 0.5
    """Share of
    something."""


@dataclass
class Schema:
    """The options of a command."""

    count: int = 3
    """Number of things."""
    names: list[str] = field(default_factory=list)
    """Names of things."""
    path: str = ""
    """File to write."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything."""
    is_fast: bool = False
    """Whether it is fast."""
    inner: Inner = field(default_factory=Inner)


def composed(*argv: str, positional: str = "names") -> Schema:
    """The dataclass that a command composes from its arguments."""
    configs = list[Schema]()
    command = Command(usage="usage", options=options_of(Schema), base=Schema, positional=positional)
    run_command(argv, describe=lambda _: command, run=configs.append)
    (config,) = configs
    return config


def test_options_are_the_fields_with_their_docstrings() -> None:
    options = {option.name: option for option in options_of(Schema)}
    assert list(options) == ["count", "names", "path", "extra", "is_fast", "inner.rate"]
    assert options["inner.rate"].description == "Share of something."
    assert (options["count"].type, options["count"].default) == (int, 3)


def test_arguments_become_the_dataclass_and_leave_the_process_unchanged() -> None:
    argv = list(sys.argv)
    config = composed("a b", "count=1e3", "path=x=(1)", "extra.any.thing=2", "inner.rate=1")
    assert config == Schema(
        count=1000, names=["a b"], path="x=(1)", extra={"any": {"thing": 2}}, inner=Inner(rate=1.0)
    )
    assert composed("names=a,b", "is_fast=true") == Schema(names=["a", "b"], is_fast=True)
    assert composed("names=") == composed() == Schema()
    assert sys.argv == argv


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("count=x", "count=x must be an integer, as in count=3"),
        ("inner.rate=true", "inner.rate=true must be a number, as in inner.rate=0.5"),
        ("is_fast=1", "is_fast=1 must be true or false, as in is_fast=false"),
        ("count=1,2", "count=1,2 has several values; give one, or add -m"),
        ("cuont=1", "option 'cuont' is unknown; did you mean count?"),
        ("rate=1", "option 'rate' is unknown; did you mean inner.rate?"),
        ("inner.x=1", "option 'inner.x' is unknown; choose one of inner.rate"),
        ("zzz=1", "option 'zzz' is unknown; choose one of count, names, path"),
        ("--count=4", "options are name=value without dashes, as in count=4"),
    ],
)
def test_a_mistake_is_one_sentence(
    argument: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        composed(argument)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "module", [train, evaluate, play, export, compare, train_lm, suite, get_textures]
)
def test_help_describes_every_option(module: ModuleType, capsys: pytest.CaptureFixture) -> None:
    module.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"python -m {module.__name__} ")
    options = [line for line in lines if line.partition("=")[0].replace(".", "").isidentifier()]
    assert options
    for line in options:
        assert len(line.split()) > 1, line


def test_the_table_of_tasks_has_help_and_refuses_options(capsys: pytest.CaptureFixture) -> None:
    table_of_tasks.main(["--help"])
    assert "print a Markdown table of all tasks" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="takes no options and got --all: remove them"):
        table_of_tasks.main(["--all"])
    table_of_tasks.main([])
    assert "| env=TMaze |" in capsys.readouterr().out


def test_evaluation_help_has_the_options_of_the_runs_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = compose_config(["env=TMaze", "env.corridor_length=77"])
    save_config(config, tmp_path / "config.yaml")
    evaluate.main([f"checkpoint={tmp_path}", "--help"])
    assert "env.corridor_length=77" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "curriculum"),
    [
        (["env.curriculum={5x5: 0.3, 7x7: 0.3}"], {"5x5": 0.3, "7x7": 0.3}),
        (["env.curriculum={}"], {}),
        ([], {}),
    ],
)
def test_an_option_that_is_a_dict_takes_new_keys(
    argv: list[str], curriculum: dict[str, float]
) -> None:
    config = compose_config(["env=MemoryMaze", "env.textures=procedural", *argv])
    assert config.env.curriculum == curriculum


def test_an_interpolation_that_names_nothing_is_one_sentence(
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit):
        compare.main(["metric=${no_such_option}", "run"])
    expected = "error: option metric: Interpolation key 'no_such_option' not found\n"
    assert capsys.readouterr().err == expected


def test_a_key_outside_the_grammar_is_answered_with_what_to_type() -> None:
    expected = re.escape("write env.curriculum={5x5: 0.3} instead of env.curriculum.5x5=0.3")
    with pytest.raises(ValueError, match=expected):
        compose_config(["env=MemoryMaze", "env.curriculum.5x5=0.3"])
