"""How the inner loops are compiled: by numba, without the GIL, cached on disk.

The first use on a machine compiles for some seconds; `announcing_compilation` says so.
"""

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SECONDS_BEFORE_NOTICE = 2.0


def kernel(function: _Function) -> _Function:
    """Compiles a function at its first call; it runs without the GIL and may reorder sums."""
    return _compile(function, fastmath=True, inline="never")


def inlined(function: _Function) -> _Function:
    """Compiles a small function into each of its callers."""
    return _compile(function, fastmath=True, inline="always")


def _compile(function: _Function, *, fastmath: bool, inline: str) -> _Function:
    # Tests wrap every function in a type checker; numba needs the function itself.
    plain = inspect.unwrap(function)
    compiled: Any = numba.njit(plain, cache=True, nogil=True, fastmath=fastmath, inline=inline)
    return compiled


@contextlib.contextmanager
def announcing_compilation(what: str) -> Iterator[None]:
    """Tells on stderr that the block compiles and how long it took, if it takes seconds."""
    start = time.perf_counter()
    announced = threading.Event()

    def announce() -> None:
        announced.set()
        print(f"compiling {what}; once, it is cached", end=" ... ", file=sys.stderr, flush=True)  # noqa: T201

    timer = threading.Timer(_SECONDS_BEFORE_NOTICE, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if announced.is_set():
            print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
