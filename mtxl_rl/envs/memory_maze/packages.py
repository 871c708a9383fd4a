"""Says in one sentence what the native Memory Maze needs and what is missing."""

import importlib.util
import sys

_PACKAGES = ("labmaze", "numba")
_PIP_LINE = "pip install 'mtxl_rl[memory-maze]'"


def check_packages() -> None:
    """Raises ImportError if a package is missing; imports none of them."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(missing_package_message(missing[0], python=sys.version_info[:2]))


def missing_package_message(package: str, *, python: tuple[int, int]) -> str:
    """The sentence for a missing package on the Python version `python`."""
    needs = f"Memory Maze needs the package {package!r}"
    if package == "labmaze" and python >= (3, 13):
        return (
            f"{needs}, which has no wheels for Python 3.13 and later: use Python 3.11 or 3.12 and "
            f"{_PIP_LINE}"
        )
    return f"{needs}: {_PIP_LINE}"
