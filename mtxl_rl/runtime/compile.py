"""How this library uses torch.compile, whole graphs of fixed shapes, and what it trusts in them."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

MAX_GRAPHS = 64
"""Of one function in a process: each set of shapes and each kind of torso is a graph of its own."""


class Compiled(Generic[P, R]):
    """`call` as one graph for each set of shapes; `for_learning`: and its backward pass.

    Beyond `MAX_GRAPHS` it warns once; what is compiled goes on, other shapes run as `call` does.

    It pickles, as a torso that holds it does, by compiling again where it is loaded and called.
    """

    def __init__(
        self, call: Callable[P, R], device: torch.device, *, for_learning: bool = False
    ) -> None:
        # Here, for it takes most of a second, and who does not compile need not wait.
        import torch._dynamo.config
        import torch._dynamo.exc
        import torch._functorch.config

        self._call, self._device, self._for_learning = call, device, for_learning
        options: dict[str, str | int | bool | Callable[..., object]] = {}
        if device.type == "cpu":
            # The code around the kernels in C++, too: without Python's lock, so that the learner's
            # threads run side by side. It says of every operation that it looks up by name.
            options["cpp_wrapper"] = True
            logging.getLogger("torch._inductor.ir").addFilter(_is_news)
        if for_learning:
            # In place, torch 2.11 to 2.15 overwrite what the forward pass has kept for the backward
            # one while a view of a part of it is to be read, and gradients are wrong. The attention
            # avoids such views (`_softmax`); whatever else may come is safe so.
            options["inplace_buffers"] = False
        named = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")  # now, and in torch 2.6
        self._limit_hit: tuple[type[Exception], ...] = tuple(
            getattr(torch._dynamo.exc, name) for name in named if hasattr(torch._dynamo.exc, name)
        )
        self._run = torch.compile(call, fullgraph=True, dynamic=False, options=options)

    def __call__(self, *given: P.args, **named: P.kwargs) -> R:
        """What `call` gives."""
        try:
            return self._call_compiled(*given, **named)
        except self._limit_hit:  # Before anything ran, so nothing is done twice.
            warnings.warn(
                f"{self._call.__qualname__} was called with more than {MAX_GRAPHS} sets of shapes "
                "and kinds of torso; further ones run without the compiler, slower, with the same "
                "results: call it with fewer different numbers of rows and steps",
                stacklevel=2,
            )
        # From now on what is compiled is looked up and nothing is tried, for torch would log and
        # explain every failure.
        self._run = torch._dynamo.run(self._call)
        return self._run(*given, **named)

    def _call_compiled(self, *given: P.args, **named: P.kwargs) -> R:
        # Around every call, for any may compile, and each thread has settings of its own.
        with torch._dynamo.config.patch(cache_size_limit=MAX_GRAPHS):
            if not self._for_learning or self._device.type != "cpu":
                return self._run(*given, **named)
            # What costs little is computed again in the backward pass. By default the compiler
            # keeps the masks of ReLUs instead, which its code for a CPU writes and reads number by
            # number: a fifth of a compiled layer's time.
            with torch._functorch.config.patch(aggressive_recomputation=True):
                return self._run(*given, **named)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """What made it, for pickle."""
        made_of = partial(Compiled, for_learning=self._for_learning)
        return made_of, (self._call, self._device)

    def __deepcopy__(self, memo: object) -> "Compiled[P, R]":
        """A copy of what holds it shares what is compiled, which holds no weights."""
        return self


def compiled(
    call: Callable[P, R], device: torch.device, *, for_learning: bool = False
) -> Compiled[P, R]:
    """`call`, to be compiled at its first use; see `Compiled`.

    Raises:
        ValueError: there is no C++ compiler, which a CPU needs.
    """
    if device.type == "cpu":
        require_compiler()
    return Compiled(call, device, for_learning=for_learning)


def becomes_a_graph() -> bool:
    """Whether what runs now is compiled, or recorded as a CUDA graph: it may ask no device."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def check_gradients(
    compiled: Sequence[Tensor],
    plain: Sequence[Tensor],
    *,
    is_inside: Sequence[bool],
    bound: float,
) -> None:
    """Refuse compiled layers whose gradients are not those of the plain ones.

    Compilers err; a wrong gradient would show in nothing but an agent that learns less.

    Args:
        compiled: gradients of a network's weights.
        plain: those of the same weights, and of the same loss, without the compiler.
        is_inside: which of the weights are the compiled layers'.
        bound: the norm of a gradient's difference, relative to its own, that rounding may make.

    Raises:
        RuntimeError: they differ by more.
    """
    inside = [one.norm() for one, is_so in zip(plain, is_inside, strict=True) if is_so]
    # Each weight for itself, for the heads' gradients are large beside the others at first; but
    # where there is nearly no gradient, rounding is all of it.
    floor = 1e-3 * torch.stack(inside).norm() + 1e-30
    relative = torch.stack([
        (one - other).norm() / (other.norm() + floor)
        for one, other in zip(compiled, plain, strict=True)
    ]).max()  # fmt: skip
    if floor.isfinite() and not relative <= bound:  # NaN is not either.
        raise RuntimeError(
            "a gradient of the compiled layers differs from that of the plain ones by "
            f"{float(relative):.1e} of its norm, and at most {bound} is rounding: torch "
            f"{torch.__version__} compiles them wrongly; set compile=false, or another torch"
        )


def require_compiler() -> None:
    """Refuse before the run what torch would only refuse inside of it.

    Raises:
        ValueError: there is no C++ compiler, which a CPU needs.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise ValueError(
            f"to compile for the CPU, torch needs the C++ compiler {name}, which is not there; "
            "install it, name another one in the environment's CXX, or leave out compile=true"
        )


def _is_news(record: logging.LogRecord) -> bool:
    return "missing a c-shim implementation" not in record.getMessage()
