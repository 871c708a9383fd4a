"""Mutants: the fast tests notice a random change of the torso or the learner.

python tests/reliability/mutants.py --mutants 100 --seed 1

cosmic-ray makes the mutants: another operator, number, comparison or keyword at one place. They are
drawn at random from all of the modules, without those in annotations. Each is tested in a copy of
the checkout. A mutant that no test notices survives; its difference is printed. It is a gap in the
tests, or a change without an effect.

Needs cosmic-ray: pip install cosmic-ray.
"""

import argparse
import ast
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from counts import Counts, Outcome, cases, run_program

ROOT = Path(__file__).parents[2]
TESTS = {
    "mtxl_rl/torso": ["tests/torso/test_invariants.py", "tests/torso"],
    "mtxl_rl/agents/returns.py": ["tests/agents/test_returns.py"],
    "mtxl_rl/agents/rollout.py": ["tests/agents"],
    "mtxl_rl/agents/ppo.py": ["tests/agents/test_ppo.py", "tests/agents"],
    "mtxl_rl/agents/ppo_loss.py": ["tests/agents/test_ppo.py", "tests/agents"],
}
"""Tests that run for a module or for those of a folder, the most likely to fail first."""
MARKS = " and not ".join(["not slow", "gpu", "compile", "original", "processes", "training"])
WITHOUT_SHAPE_CHECKS = "--jaxtyping-packages="
"""Shape checks double the time, and can fail on a mutant that computes the right values."""
_TIMEOUT_FACTOR = 4
"""A mutant that takes this many times as long as the original has an endless loop."""


class Place(NamedTuple):
    """A place that can be mutated."""

    module: Path
    operator: str
    occurrence: int
    line: int


def annotation_ranges(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of each annotation in Python source, as (line, column)."""
    for node in ast.walk(ast.parse(source)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.expr):
                end = annotation.end_lineno or 0, annotation.end_col_offset or 0
                yield (annotation.lineno, annotation.col_offset), end


def find_places(modules: Sequence[Path]) -> list[Place]:
    """All places in the modules, in a fixed order."""
    from cosmic_ray.commands.init import init
    from cosmic_ray.work_db import use_db

    ranges = {module: list(annotation_ranges(module.read_text())) for module in modules}
    places = []
    with use_db(":memory:") as database:
        init(modules, database, {})
        for item in database.work_items:
            (mutation,) = item.mutations
            start = tuple(mutation.start_pos)
            if not any(low <= start < high for low, high in ranges[mutation.module_path]):
                places.append(
                    Place(
                        mutation.module_path, mutation.operator_name, mutation.occurrence, start[0]
                    )
                )
    return sorted(places)


def try_mutant(place: Place, command: str, *, timeout: float) -> Outcome:
    """Test the checkout with one place mutated."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import MutationSpec, TestOutcome

    spec: Any = MutationSpec(
        module_path=place.module,
        operator_name=place.operator,
        occurrence=place.occurrence,
        start_pos=(place.line, 0),
        end_pos=(place.line, 1),
    )
    result = mutate_and_test([spec], command, timeout)
    if result.test_outcome == TestOutcome.SURVIVED:
        return Outcome("survived", result.diff)
    if result.test_outcome == TestOutcome.KILLED:
        return Outcome("killed")
    return Outcome("not run", result.output)


def copy_checkout(folder: Path) -> None:
    """Copy the files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in listed.split("\0"):
        source = ROOT / name
        if name and source.is_file() and not source.is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def pytest_command(tests: Sequence[str]) -> str:
    """The command that tests a mutant, and ends at the first failure."""
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", MARKS,
              WITHOUT_SHAPE_CHECKS]  # fmt: skip
    return shlex.join([*pytest, *tests])


def modules_of(prefix: str) -> list[Path]:
    """A module, or those of a folder."""
    return [Path(prefix)] if prefix.endswith(".py") else sorted(Path(prefix).rglob("*.py"))


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Test random mutants of the modules, and count those that survive."""
    counts = Counts("mutants")
    copy_checkout(Path.cwd())  # The tests run in the current folder.
    prefixes = {module: prefix for prefix in TESTS for module in modules_of(prefix)}
    every = find_places(list(prefixes))
    chosen = random.Random(arguments.seed).sample(every, min(arguments.mutants, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants of {len(prefixes)} modules", flush=True)
    timeouts = dict[str, float]()
    for number in cases(arguments, len(chosen)):
        place = chosen[number]
        prefix = prefixes[place.module]
        command = pytest_command(TESTS[prefix])
        if prefix not in timeouts:
            begin = time.monotonic()
            subprocess.run(shlex.split(command), check=True, stdout=sys.stderr)
            timeouts[prefix] = _TIMEOUT_FACTOR * (time.monotonic() - begin)
        outcome = try_mutant(place, command, timeout=timeouts[prefix])
        case = f"--case {number}, {place.module}:{place.line} {place.operator}"
        if not counts.prints_all:  # A mutant takes minutes, so its result is shown immediately.
            print(f"{outcome.name}: {case}\n{outcome.detail}", flush=True)
        counts.add(prefix, case, outcome)
    return [counts]


if __name__ == "__main__":
    run_program(__doc__, {"mutants": 100}, run)
