"""Decorators that compile the inner loops with numba, without the GIL, cached on disk.

The first use on a machine compiles for some seconds; `announcing_compilation` reports it. numba
detects changes only in a function's own file. After editing a kernel that another file calls,
delete the cache: ``find mtxl_rl -name '*.nb[ic]' -delete``.
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
    """Compile a function at its first call; it runs without the GIL."""
    return _compile(function)


def bare_kernel(function: _Function) -> _Function:
    """Compile a function that makes no arrays: references are not counted, 8 to 15 % of the time.

    Every view of an array's part is otherwise counted, by an atomic addition and its opposite.
    """
    return _compile(function, _nrt=False)


def inlined(function: _Function) -> _Function:
    """Compile a small function into each of its callers."""
    return _compile(function, inline="always")


def _compile(function: _Function, **options: Any) -> _Function:  # noqa: ANN401
    # Tests wrap every function in a type checker; numba needs the function itself.
    plain = inspect.unwrap(function)
    # The error model omits the check for zero at each division. No fastmath: with it, a process
    # that compiles rounds differently from one that loads the cache, and a resumed run differs.
    compiled: Any = numba.njit(plain, cache=True, nogil=True, error_model="numpy", **options)
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


_EIGHT = ir.VectorType(ir.IntType(16), 8)  # the channels of two texels


def _lanes(first: int, second: int) -> Any:  # noqa: ANN401 - llvmlite has no types
    """The channels of two texels, each four the same."""
    return ir.Constant(_EIGHT, [first] * 4 + [second] * 4)


def _in_all_lanes(builder: Any, value: Any) -> Any:  # noqa: ANN401
    word, undefined = ir.IntType(32), ir.Constant(_EIGHT, ir.Undefined)
    narrow = builder.trunc(value, _EIGHT.element)
    start = builder.insert_element(undefined, narrow, ir.Constant(word, 0))
    return builder.shuffle_vector(start, undefined, ir.Constant(ir.VectorType(word, 8), [0] * 8))


def _read_two_texels(builder: Any, texels: Any, index: Any) -> Any:  # noqa: ANN401
    bytes_8 = ir.VectorType(ir.IntType(8), 8).as_pointer()
    pointer = builder.bitcast(builder.gep(texels, [index]), bytes_8)
    return builder.zext(builder.load(pointer, align=4), _EIGHT)


def _by_256(builder: Any, value: Any) -> Any:  # noqa: ANN401
    return builder.lshr(builder.add(value, _lanes(128, 128)), _lanes(8, 8))


def _blend_texels(_context: Any, texels: Any, index: Any, stride: Any, x: Any, y: Any) -> Any:  # noqa: ANN401
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        word, long = ir.IntType(32), ir.IntType(64)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        first, stride_, x_, y_ = arguments[1:]
        above = builder.zext(first, long)
        below = builder.add(above, builder.zext(stride_, long))
        down = _in_all_lanes(builder, y_)
        column = builder.add(
            builder.mul(
                _read_two_texels(builder, data, above), builder.sub(_lanes(256, 256), down)
            ),
            builder.mul(_read_two_texels(builder, data, below), down),
        )
        # 256 - x for the left one, by its complement, and x for the right one.
        across = builder.xor(_in_all_lanes(builder, x_), _lanes(0xFFFF, 0))
        across = builder.add(across, _lanes(257, 0))
        weighted = builder.mul(_by_256(builder, column), across)
        swap = ir.Constant(ir.VectorType(word, 8), [4, 5, 6, 7, 0, 1, 2, 3])
        other = builder.shuffle_vector(weighted, weighted, swap)
        color = _by_256(builder, builder.add(weighted, other))
        halves = builder.bitcast(color, ir.VectorType(long, 2))
        return builder.extract_element(halves, ir.Constant(word, 0))

    return types.uint64(texels, index, stride, x, y), generate


blend_texels: Any = intrinsic(_blend_texels)
"""blend_texels(texels, index, stride, x, y) is the bilinear colour between four texels. They are at
index, index + 1, index + stride and index + stride + 1. Red is in bits 0 to 7, green in 16 to 23,
blue in 32 to 39. x and y, from 0 to 255, are in 1/256 of a texel; all arguments are of uint32.
Vectors of the processor hold two texels, which takes half the time of whole numbers that hold
one."""


def _floor_log2(_context: Any, value: Any) -> Any:  # noqa: ANN401 - numba has no types
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        exponent = builder.ashr(bits, ir.Constant(word, 23))
        return builder.sub(exponent, ir.Constant(word, 127))

    return types.int32(value), generate


floor_log2: Any = intrinsic(_floor_log2)
"""floor_log2(x) is the exponent of a positive float32, read from its bits."""


def _add_one(_context: Any, counter: Any) -> Any:  # noqa: ANN401 - numba has no types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


_count_up: Any = intrinsic(_add_one)


@inlined
def claim(rows: Any) -> Any:  # noqa: ANN401 - numba inlines it
    """The next of the rows, of `threads.Threads.run`, that no other thread has; -1 after the last.

    Threads that claim a row at a time end together, and need Python's lock at the ends alone.
    """
    row = _count_up(rows)
    return row if row < rows[1] else -1


@contextlib.contextmanager
def announcing_compilation(what: str) -> Iterator[None]:
    """Report on stderr that the block compiles and how long it took, if it takes seconds."""
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
