"""The documentation is correct: its Python runs; its links, names, commands and options exist."""

import re
import runpy
import shlex
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from mtxl_rl import compare, evaluate, export, get_textures, hub, play, suite, train_lm
from mtxl_rl.command import choices, options_of
from mtxl_rl.compose import GROUPS, compose_config
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.evaluation.suite_runner import SuiteConfig
from mtxl_rl.play import PlayConfig

ROOT = Path(__file__).parents[1]
HOW_TO = "CONTRIBUTING.md"
"""Its examples name files that a reader adds; other tests build what it describes."""
ALL_PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/tutorials/*.md",
        "docs/experiments/*.md",
        "pretrained/*/*.md",
    )
    for path in ROOT.glob(pattern)
)
HISTORY = {page for page in ALL_PAGES if page.startswith("docs/experiments/")} | {"CHANGELOG.md"}
"""They describe the past: only their links are checked."""
PAGES = [page for page in ALL_PAGES if page not in HISTORY]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks() -> list[tuple[str, str]]:
    """The blocks of every page; those of a notebook share their names, so they are one block."""
    fence = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
    pages = [(page, fence.findall(text(page))) for page in PAGES if page != HOW_TO]
    return [
        (page, block)
        for page, blocks in pages
        for block in (["\n".join(blocks)] if text(page).startswith("---\njupyter:") else blocks)
    ]


def commands(module: str) -> list[list[str]]:
    """The arguments of every `python -m mtxl_rl.<module>` in code blocks and in tables."""
    pattern = re.compile(rf"-m mtxl_rl\.{module} ([^`#\n]*)")
    pages = [text(page).replace("\\\n", " ").replace("$PPO", "") for page in PAGES]
    return [shlex.split(match) for page in pages for match in pattern.findall(page)]


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_pages_have_python() -> None:
    assert {page for page, _ in python_blocks()} >= {"README.md", "docs/torso.md"}


@pytest.mark.parametrize(("page", "block"), python_blocks())
@pytest.mark.training
def test_python_blocks_run(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Some of them train.
    exec(compile(block, page, "exec"), {})


@pytest.mark.training
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/cleanrl_style.py"))["train"](num_iterations=2)
    assert "iteration 2: " in capsys.readouterr().out


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text(page), flags=re.S)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path) if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", [page for page in PAGES if page != HOW_TO])
def test_modules_and_files_exist(page: str) -> None:
    for name in re.findall(r"\bmtxl_rl(?:\.(?!__)\w+)+", text(page)):
        parts = name.split(".")
        path = ROOT / parts.pop(0)
        while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").is_file()):
            path /= parts.pop(0)
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        code = source.read_text(encoding="utf-8")
        assert all(re.search(rf"\b{part}\b", code) for part in parts), name
    for name in re.findall(r"`((?:mtxl_rl|tests|docs|examples)/[\w/.-]+)`", text(page)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    """Every code span that begins with `name=` names options of some command; True is Python's."""
    modules = (compare, evaluate, export, get_textures, hub, play, suite, train_lm)
    members = (member for module in modules for member in vars(module).items())
    schemas = [value for name, value in members if name.endswith("Config") and is_dataclass(value)]
    envs = [entry.config_class for entry in ENVS.values()]
    legal = {option.name for schema in schemas for option in options_of(schema)} | set(GROUPS)
    legal |= {option.name for option in options_of(TrainConfig, env=envs)}
    for span in re.findall(r"`([a-z_+][\w.+]*=(?!True)[^`(]*)`", text(page)):
        for part in span.split():
            name, has_value, _ = part.lstrip("+").partition("=")
            assert not has_value or name in legal or name.startswith("env.kwargs."), part


def test_training_commands_are_legal() -> None:
    assert len(commands("train")) > 5
    for arguments in commands("train"):
        new_run = [part for part in arguments if "=" in part]
        is_sweep = "-m" in arguments  # Several values, which only a sweep takes.
        if not is_sweep and not any(part.startswith("resume=") for part in new_run):
            compose_config(new_run)


@pytest.mark.parametrize(
    ("module", "schema"),
    [("evaluate", EvaluateConfig), ("suite", SuiteConfig), ("play", PlayConfig)],
)
def test_other_commands_have_legal_options(module: str, schema: type) -> None:
    legal = {"env", *(option.name for option in options_of(schema, env=[]))}
    assert commands(module)
    for arguments in commands(module):
        names = {part.split("=")[0] for part in arguments}
        assert {name for name in names if not name.startswith("env.")} <= legal, arguments


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_lists_every_preset(group: str) -> None:
    rows = [line for page in PAGES for line in text(page).splitlines()]
    row = next(line for line in rows if line.startswith(f"| `{group}=` |") and "preset: " in line)
    listed = row.split("preset: ")[1].removesuffix(" |").split(", ")
    assert sorted(listed) == sorted(choices(group))


def test_every_suite_is_described() -> None:
    for name in choices("suite"):
        assert f"| `{name}` |" in text("docs/training.md"), name
