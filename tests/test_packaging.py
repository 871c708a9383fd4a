"""The wheel holds the library and nothing else, importing it is cheap, and the lock file fits."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mtxl_rl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy, links included, so that no `build/` is left behind."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests are not next to the sources")
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source") / "checkout"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_symlink():
            (source / path.name).symlink_to(path.readlink())
        elif path.name in ("mtxl_rl", "tests"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, symlinks=True, ignore=ignore)
        elif path.name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(path, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    build = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files(*patterns: str) -> set[str]:
    package = ROOT / "mtxl_rl"
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in package.rglob(pattern)}


def test_the_wheel_is_marked_as_typed(wheel_files: set[str]) -> None:
    assert "mtxl_rl/py.typed" in wheel_files


def test_every_module_and_every_yaml_file_is_in_the_wheel(wheel_files: set[str]) -> None:
    expected = files("*.py", "*.yaml")
    assert "mtxl_rl/configs/env/MemoryMaze.yaml" in expected
    assert expected <= wheel_files


def test_the_wheel_has_one_name_at_its_top(wheel_files: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mtxl_rl"}


def test_the_wheel_carries_its_license(wheel_files: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)


def _locked() -> dict[str, set[Version]]:
    """The versions of each package in the lock file; some differ by Python or platform."""
    locked = defaultdict[str, set[Version]](set)
    for line in (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            locked[canonicalize_name(pin.name)].add(Version(specifier.version))
    return locked


def test_the_lock_file_has_every_dependency_in_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = ("dev", "report", "video", "memory-maze-original")
    listed = [*project["dependencies"], *(line for name in names for line in extras[name])]
    locked = _locked()
    for requirement in map(Requirement, listed):
        if requirement.name != project["name"]:
            versions = locked[canonicalize_name(requirement.name)]
            assert versions, f"{requirement} is not in requirements-dev.lock"
            assert all(version in requirement.specifier for version in versions), str(requirement)


def test_the_lock_file_has_the_torch_of_ci() -> None:
    ci = re.search(r"TORCH:-torch==([\d.]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert ci
    assert _locked()["torch"] == {Version(ci[1])}


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = ROOT / "CITATION.cff"
    if not citation.is_file():
        pytest.skip("the tests are not next to the sources")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in citation.read_text()


def test_importing_the_library_loads_nothing_heavy(
    imported_packages: Callable[..., set[str]],
) -> None:
    heavy = {"torch", "gymnasium", "envpool", "numpy", "hydra", "rich", "tensorboard"}
    assert imported_packages("mtxl_rl") & heavy == set()


def test_every_public_name_can_be_imported(imported_packages: Callable[..., set[str]]) -> None:
    assert set(mtxl_rl.__all__) <= set(dir(mtxl_rl))
    assert mtxl_rl.__version__ == version("mtxl_rl")
    # In a new process, where no earlier import hides a circular one.
    assert "torch" in imported_packages("mtxl_rl", *mtxl_rl.__all__)
