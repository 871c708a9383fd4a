"""Loops that NumPy cannot do: compiled where numba is installed, else as they stand."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function by numba, which compiles it at its first call and keeps the code on disk.

    Without numba it is the function itself: the same results, some fifty times slower.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return function
    # Tests wrap every function in a type checker; numba needs the function itself.
    quick: Callable[..., Any] = numba.njit(inspect.unwrap(function), cache=True)
    return quick
