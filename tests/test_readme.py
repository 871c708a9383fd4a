"""What README and RESULTS say is so: its Python runs, its commands and options exist."""

import re
from pathlib import Path

import pytest

from mtxl_rl.command import choices, options_of
from mtxl_rl.config import GROUPS, compose_config
from mtxl_rl.evaluate import EvaluateConfig
from mtxl_rl.evaluation.suite import SuiteConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOLD = README + (ROOT / "RESULTS.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
    return [body for name, body in fences if name == language]


def commands(module: str) -> list[list[str]]:
    """The arguments of every `python -m mtxl_rl.<module>` in code blocks and in tables."""
    found = re.findall(rf"python -m mtxl_rl\.{module} ([^`#\n]*)", TOLD)
    return [command.split() for command in found]


def test_its_python_runs() -> None:
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_its_training_commands_are_legal() -> None:
    assert len(commands("train")) > 5
    for arguments in commands("train"):
        if not any(part.startswith("resume=") for part in arguments):
            compose_config([part for part in arguments if "=" in part])


@pytest.mark.parametrize(
    ("module", "schema"), [("evaluate", EvaluateConfig), ("suite", SuiteConfig)]
)
def test_its_other_commands_have_legal_options(module: str, schema: type) -> None:
    legal = {option.name for option in options_of(schema)}
    assert commands(module)
    for arguments in commands(module):
        names = {part.split("=")[0] for part in arguments}
        assert {name for name in names if not name.startswith("env.")} <= legal, arguments


@pytest.mark.parametrize("group", GROUPS)
def test_its_table_of_options_lists_every_choice(group: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}="))
    for name in choices(group):
        assert name in row, name


def test_its_tree_names_what_is_there_and_nothing_else() -> None:
    tree = blocks("")[-1]
    package = ROOT / "mtxl_rl"
    there = {path.name for path in package.rglob("*.py")}
    assert set(re.findall(r"\w+\.\w+", tree)) <= there
    modules = {path.name for path in package.glob("[a-z]*.py")}
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    for name in modules | folders:
        assert name in tree, name
