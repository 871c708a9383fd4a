"""The fast tests on other machines: threads, cores, order, user, path, Python, versions.

python tests/reliability/machines.py                       every condition, minutes each
python tests/reliability/machines.py --case 3              one of them
python tests/reliability/machines.py --list                their numbers and names

The fast tests run once for each condition, in a copy of the checkout. Conditions with another
Python or with the lowest versions of the dependencies install an environment of their own; the
Pythons must be on the PATH. A condition that this machine cannot offer is skipped, with the reason.
MTXL_RL_TORCH is the requirement of torch to install there.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from counts import Counts, Outcome, cases, run_program
from mutants import MARKS, ROOT, WITHOUT_SHAPE_CHECKS, copy_checkout

NOBODY = 65534
UNICODE_FOLDER = "a folder with spaces, é and 漢字"


class Condition(NamedTuple):
    """How the tests are started."""

    name: str
    variables: tuple[tuple[str, str | None], ...] = ()
    """Of the environment; None: removed. The others' `OMP_NUM_THREADS` is 1."""
    prefix: tuple[str, ...] = ()
    """Of the command."""
    arguments: tuple[str, ...] = ()
    """Of pytest."""
    packages: tuple[str, ...] = ()
    """To install in addition, in an environment of its own."""
    python: str = ""
    """Another Python, with an environment of its own."""
    folder: str = "checkout"
    repeats: int = 1
    lacks: Callable[[], str] = lambda: ""
    """Why this machine cannot offer it; empty if it can."""


def lowest_versions() -> tuple[str, ...]:
    """Requirements that pin each dependency to the lowest version that pyproject.toml allows."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = []
    for requirement in document["project"]["dependencies"]:
        match = re.match(r"([\w.-]+)>=([\d.]+)", requirement)
        if match and match[1] != "torch":
            pins.append(f"{match[1]}=={match[2]}")
    return tuple(pins)


def needs(program: str) -> Callable[[], str]:
    """Whether a program is on the PATH."""
    return lambda: "" if shutil.which(program) else f"no {program} on the PATH"


def needs_root() -> str:
    """Whether another user can be chosen."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root and Linux"
    folders = Path(sys.executable).resolve().parents
    is_shared = all(folder.stat().st_mode & 0o001 for folder in folders)
    return "" if is_shared else "this Python lies in a folder that only root may enter"


CONDITIONS = (
    Condition("1 thread"),
    Condition("2 threads", (("OMP_NUM_THREADS", "2"),)),
    Condition("64 threads", (("OMP_NUM_THREADS", "64"),)),
    Condition("OMP_NUM_THREADS unset", (("OMP_NUM_THREADS", None),)),
    Condition("one core (taskset)", prefix=("taskset", "-c", "0"), lacks=needs("taskset")),
    Condition("PYTHONHASHSEED=random", (("PYTHONHASHSEED", "random"),)),
    Condition("random order", arguments=("-p", "randomly"), packages=("pytest-randomly",)),
    Condition("twice in one checkout", repeats=2),
    Condition("spaces and letters in the path", folder=UNICODE_FOLDER),
    Condition(
        "a user without rights",
        prefix=("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        packages=("pip",),  # For an environment of its own: this one may lie in a folder of root.
        lacks=needs_root,
    ),
    *(
        Condition(name, python=name, lacks=needs(name))
        for name in ("python3.12", "python3.13", "python3.14")
    ),
    Condition("lowest versions", packages=lowest_versions()),
)


def install(condition: Condition, checkout: Path) -> str:
    """Make an environment for a condition that needs one; its Python."""
    if not condition.python and not condition.packages:
        return sys.executable
    folder = Path("venv").absolute()
    base = condition.python or sys.executable
    run_quietly([base, "-m", "venv", str(folder)])
    python = str(folder / "bin/python")
    torch = os.environ.get("MTXL_RL_TORCH", "torch")
    pip = [python, "-m", "pip", "install", "--quiet"]
    editable = ["--editable", f"{checkout}[dev,video,report]"]
    run_quietly([*pip, torch, *editable, *condition.packages])
    return python


def run_quietly(command: list[str]) -> None:
    """Run it; its output is part of the error.

    Raises:
        RuntimeError: it failed.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines()
        raise RuntimeError(f"{' '.join(command)}: {' '.join(lines[-5:])}")


def sessions(condition: Condition, python: str) -> Iterator[list[str]]:
    """The commands of the fast tests: with the shape checks, and those without them."""
    pytest = [*condition.prefix, python, "-m", "pytest", "-q", "-p", "no:cacheprovider",
              "-n", "2", "--dist", "loadgroup", *condition.arguments]  # fmt: skip
    for _ in range(condition.repeats):
        yield [*pytest, "-m", f"{MARKS} and not unchecked"]
        yield [*pytest, "-m", f"{MARKS} and unchecked", WITHOUT_SHAPE_CHECKS]


def run_tests(condition: Condition) -> Outcome:
    """Run the fast tests under a condition."""
    checkout = Path(condition.folder)
    shutil.rmtree(checkout, ignore_errors=True)
    copy_checkout(checkout)
    try:
        python = install(condition, checkout.absolute())
    except RuntimeError as error:
        return Outcome("not installed", str(error))
    variables = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    for name, value in condition.variables:
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    if condition.prefix[:1] == ("setpriv",):
        home = checkout.absolute() / "home"
        home.mkdir()
        variables["HOME"] = str(home)
        Path.cwd().chmod(0o755)
        for path in [checkout, *checkout.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    passed = 0
    for command in sessions(condition, python):
        result = subprocess.run(
            command, cwd=checkout, env=variables, capture_output=True, text=True, check=False
        )
        last = result.stdout.strip().rpartition("\n")[2]
        print(f"{condition.name}: {last}", flush=True)
        if result.returncode:
            return Outcome("failed", result.stdout[-30_000:] + result.stderr[-2000:])
        passed += int(re.findall(r"(\d+) passed", last)[0])
    return Outcome("passed", f"{passed} tests")


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Run the tests under each condition."""
    counts = Counts("machines")
    for number in cases(arguments, min(arguments.conditions, len(CONDITIONS))):
        condition = CONDITIONS[number]
        reason = condition.lacks()
        outcome = Outcome("skipped", reason) if reason else run_tests(condition)
        if reason:
            print(f"{condition.name}: skipped, {reason}", flush=True)
        counts.add(condition.name, f"--case {number}", outcome)
        shutil.rmtree("venv", ignore_errors=True)
    return [counts]


if __name__ == "__main__":
    if "--list" in sys.argv:
        print("\n".join(f"{number} {each.name}" for number, each in enumerate(CONDITIONS)))
        raise SystemExit
    run_program(__doc__, {"conditions": len(CONDITIONS)}, run)
