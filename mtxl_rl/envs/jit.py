"""Compile loops that NumPy cannot vectorise, with numba."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled by numba, which is imported at the first call.

    Numba compiles when the function is first called, and caches the machine code on disk.
    """
    numba = importlib.import_module("numba")
    # Tests wrap every function in a type checker; numba needs the function inside.
    compiled: Callable[..., Any] = numba.njit(inspect.unwrap(function), cache=True)
    return compiled
