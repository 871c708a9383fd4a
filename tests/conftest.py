"""Sessions with shape checks skip tests that these refuse; one worker has Memory Maze's tests."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MAZE = Path(__file__).parent / "envs" / "memory_maze"
MAX_WAIT_SECONDS = 600
"""Far longer than any wait takes, also on a busy machine."""


def _wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while not is_done():
        assert time.monotonic() < deadline, f"waited {MAX_WAIT_SECONDS} s in vain"
        time.sleep(0.1)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """A function that waits until another one returns True, and fails after ten minutes."""
    return _wait_until


@pytest.fixture
def imported_packages() -> Callable[..., set[str]]:
    """A function that imports a module, and names in it, in a new process; returns what loads."""

    def run(module: str, *names: str) -> set[str]:
        worker = str(Path(__file__).with_name("imports_worker.py"))
        command = [sys.executable, worker, module, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return set(done.stdout.split())

    return run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip `unchecked` and `compile` tests where jaxtyping checks the package; group the maze's.

    Each worker that uses the maze's engine compiles it, half a minute; see `--dist loadgroup`.
    """
    has_checks = bool(config.getoption("jaxtyping_packages", default=None))
    skip = pytest.mark.skip(reason="needs a session without --jaxtyping-packages: see the Makefile")
    for item in items:
        if has_checks and {"unchecked", "compile"} & set(item.keywords):
            item.add_marker(skip)
        if MAZE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("memory_maze"))
