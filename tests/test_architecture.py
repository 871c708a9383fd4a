"""The layers of the package hold, and no file of it escapes the tools that check them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtxl_rl"
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tool(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / name), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_layers_hold() -> None:
    run = tool("lint-imports", "--no-cache", "--no-logo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_every_file_is_in_the_graph_that_the_layers_are_checked_on() -> None:
    graph = grimp.build_graph("mtxl_rl", cache_dir=None)
    assert {module_name(path) for path in MODULES} == graph.modules


def test_every_file_is_linted() -> None:
    run = tool("ruff", "check", "--show-files")
    linted = {Path(line) for line in run.stdout.splitlines()}
    assert set(MODULES) - linted == set()


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


@pytest.mark.parametrize("folder", ["mtxl_rl", "tests"])
def test_no_two_modules_share_a_name(folder: str) -> None:
    counts = Counter(path.name for path in (ROOT / folder).rglob("*.py"))
    shared = {name for name, count in counts.items() if count > 1}
    assert shared <= {"__init__.py", "__main__.py", "conftest.py"}


@pytest.mark.parametrize("name", ["agents", "envs", "configs"])
def test_the_links_at_the_top_show_the_packages_inside(name: str) -> None:
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip("this checkout was made without symbolic links; nothing depends on them")
    assert link.readlink() == Path("mtxl_rl") / name
    assert link.resolve() == (PACKAGE / name).resolve()
    assert link.is_dir()
