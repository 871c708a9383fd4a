"""How the inner loops are compiled: by numba, without the GIL, cached on disk.

The first use on a machine compiles for some seconds; `announcing_compilation` says so. numba looks
for changes only in a function's own file: whoever edits a kernel that another file calls deletes
what is cached, ``find mtxl_rl -name '*.nb[ic]' -delete``.
"""

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SECONDS_BEFORE_NOTICE = 2.0


def kernel(function: _Function) -> _Function:
    """Compiles a function at its first call; it runs without the GIL and may reorder sums."""
    return _compile(function)


def bare_kernel(function: _Function) -> _Function:
    """Compiles a function that makes no arrays: references are not counted, 8 to 15 % of the time.

    Every view of an array's part is otherwise counted, by an atomic addition and its opposite.
    """
    return _compile(function, _nrt=False)


def inlined(function: _Function) -> _Function:
    """Compiles a small function into each of its callers."""
    return _compile(function, inline="always")


def _compile(function: _Function, **options: Any) -> _Function:  # noqa: ANN401
    # Tests wrap every function in a type checker; numba needs the function itself.
    plain = inspect.unwrap(function)
    # The error model leaves out the check for zero at each division.
    compiled: Any = numba.njit(
        plain, cache=True, nogil=True, fastmath=True, error_model="numpy", **options
    )
    return compiled


def _prefetch(_context: Any, array: Any, index: Any) -> Any:  # noqa: ANN401 - numba has no types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte_pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.gep(data, [builder.zext(arguments[1], ir.IntType(64))])
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # To be read, kept in all caches, data.
        flags = [ir.Constant(word, flag) for flag in (0, 3, 1)]
        builder.call(call, [builder.bitcast(place, byte_pointer), *flags])
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch: Any = intrinsic(_prefetch)
"""prefetch(array, index) asks the processor for the cache line of array[index], which is needed
soon; the index is a uint32."""


def _floor_log2(_context: Any, value: Any) -> Any:  # noqa: ANN401 - numba has no types
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        exponent = builder.ashr(bits, ir.Constant(word, 23))
        return builder.sub(exponent, ir.Constant(word, 127))

    return types.int32(value), generate


floor_log2: Any = intrinsic(_floor_log2)
"""floor_log2(x) is the exponent of a positive float32, read from its bits."""


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
