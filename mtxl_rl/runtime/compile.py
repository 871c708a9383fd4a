"""torch.compile: which functions are compiled, with which options, and how they are checked.

`compile_policy` is called once, by `Run`; policy, learner and torso know nothing of it.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.ppo import PPO, LossWeights
from mtxl_rl.agents.rollout import Rollout
from mtxl_rl.agents.transition import Decision, Lead, PolicyInputs
from mtxl_rl.torso import MemoryTransformer
from mtxl_rl.torso.cache import Cache
from mtxl_rl.torso.layer import Layer

P = ParamSpec("P")
R = TypeVar("R")

MAX_GRAPHS = 64
"""Graphs of one function in a process: each set of shapes and kind of torso has its own."""
COMPILE_SECONDS = 90.0
"""Time to compile a policy for a CPU for the first time: 60 to 90 s were measured."""
SPEEDUP = 1.3
"""Assumed factor of the steps/s; measured: 1.1 to 2.9, see docs/speed.md."""


def resolve_compile(kind: str, device: torch.device, *, seconds_left: float) -> tuple[bool, str]:
    """Whether `compile=auto` compiles, and the reason as a sentence.

    Args:
        kind: of the torso.
        device: where the run computes.
        seconds_left: that acting and learning would take in the rest of the run, uncompiled.
    """
    if kind != "transformer":
        return False, f"torso.kind={kind} has nothing to compile"
    if device.type != "cpu":
        return False, f"no run on {device.type} was measured yet; compile=true compiles it"
    try:
        require_compiler(device)
    except ValueError as error:
        return False, str(error)
    left = timedelta(seconds=round(seconds_left))
    saved = seconds_left * (1 - 1 / SPEEDUP)
    if saved <= COMPILE_SECONDS:
        return False, (
            f"acting and learning take {left} more; compiling would save less than the "
            f"{COMPILE_SECONDS:g} s that it takes"
        )
    return True, (
        f"acting and learning would take {left} more; compiling takes about {COMPILE_SECONDS:g} s "
        f"and saves about {timedelta(seconds=round(saved))}"
    )


def compile_policy(policy: Policy) -> None:
    """Compile a policy's step of acting, and its torso's layers for learning, at their first use.

    On a GPU the step of acting becomes a CUDA graph; no GPU has run it yet. Torsos whose memory is
    written from whole segments (slots, tokens) act uncompiled: the CPU must know whether a segment
    ends.

    Raises:
        ValueError: the torso is not a transformer, or there is no C++ compiler, which a CPU needs.
    """
    compile_acting(policy)
    compile_layers(_transformer(policy))


def compile_acting(policy: Policy) -> None:
    """The acting half of `compile_policy`."""
    torso = _transformer(policy)
    device = torso.norm.weight.device
    require_compiler(device)
    if not torso.writes_whole_segments:
        is_graph = device.type == "cuda"
        step = _Compiled(Policy.decode_step, device, cuda_graph=is_graph)
        _override(policy, "decode_step", _step_in_place(step) if is_graph else step)


def compile_layers(torso: MemoryTransformer) -> None:
    """Compile what `torso(...)` computes in each layer where gradients are wanted.

    Layers of one kind share the compiled code; each number of rows and steps has its own.

    Raises:
        ValueError: there is no C++ compiler, which a CPU needs.
    """
    device = torso.norm.weight.device
    require_compiler(device)
    forward = _Compiled(Layer.forward, device, gradients=True)
    for layer in torso.layers:
        _override(layer, "forward", forward)


def _transformer(policy: Policy) -> MemoryTransformer:
    if isinstance(policy.torso, MemoryTransformer):
        return policy.torso
    raise ValueError(
        f"compile=true has no effect with torso.kind={policy.torso.config.kind}; leave it out, or "
        "set torso.kind=transformer"
    )


@contextmanager
def eager(policy: Policy) -> Iterator[None]:
    """Inside, the policy runs uncompiled."""
    overrides = [
        (module, name, vars(module).pop(name))
        for module in policy.modules()
        for name in ("decode_step", "forward")
        if name in vars(module)
    ]
    try:
        yield
    finally:
        for module, name, function in overrides:
            setattr(module, name, function)


def check_gradients(agent: PPO, rollout: Rollout) -> None:
    """Refuse compiled layers whose gradients differ from those of the eager layers.

    Compilers have faults, and a wrong gradient would show in nothing but an agent that learns less.
    Compares the gradients of one minibatch.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    num_items = rollout.shape.num_envs * rollout.shape.num_spans // agent.config.num_minibatches
    items = torch.arange(max(num_items, 1), device=rollout.value.device)
    noise = torch.randn(rollout.value.shape, generator=torch.Generator().manual_seed(0))
    spans = rollout.spans(items, noise.to(rollout.value), rollout.value + noise.to(rollout.value))

    def gradients() -> tuple[Tensor, ...]:
        loss, _ = agent.loss(spans, LossWeights(entropy=agent.config.entropy_coef))
        return torch.autograd.grad(loss, agent.parameters, materialize_grads=True)

    compiled = gradients()
    with eager(agent.policy):
        reference = gradients()
    in_torso = set(agent.policy.torso.parameters())
    compare_gradients(
        compiled,
        reference,
        is_compiled=[parameter in in_torso for parameter in agent.parameters],
        # Rounding is 2e-6, 1e-3 where it flips a ReLU, and 0.09 in bfloat16; reading a wrong
        # buffer gives about 1.
        bound=0.5 if agent.policy.config.precision == "bfloat16" else 0.05,
    )


def compare_gradients(
    compiled: Sequence[Tensor],
    reference: Sequence[Tensor],
    *,
    is_compiled: Sequence[bool],
    bound: float,
) -> None:
    """Compare the gradients of each weight.

    Args:
        compiled: gradients with the compiled layers.
        reference: gradients of the same weights and loss with the eager layers.
        is_compiled: which of the weights belong to compiled layers.
        bound: the largest norm of a difference, relative to the gradient's own.

    Raises:
        RuntimeError: a difference exceeds the bound.
    """
    inside = [
        gradient.norm()
        for gradient, is_inside in zip(reference, is_compiled, strict=True)
        if is_inside
    ]
    # Per weight, because the heads' gradients are large at first; where the gradient is close to
    # zero, all of it is rounding, hence the floor.
    floor = 1e-3 * torch.stack(inside).norm() + 1e-30
    relative = torch.stack([
        (gradient - expected).norm() / (expected.norm() + floor)
        for gradient, expected in zip(compiled, reference, strict=True)
    ]).max()  # fmt: skip
    if floor.isfinite() and not relative <= bound:
        raise RuntimeError(
            "a gradient of the compiled layers differs from that of the eager layers by "
            f"{float(relative):.1e} of its norm, where rounding explains at most {bound}: torch "
            f"{torch.__version__} compiles them wrongly; set compile=false, or use another torch"
        )


def require_compiler(device: torch.device) -> None:
    """Check for the C++ compiler before the run, where torch would fail in the middle of it.

    Raises:
        ValueError: there is no C++ compiler, and `device` is a CPU, which needs one.
    """
    if device.type != "cpu":
        return
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise ValueError(
            f"to compile for the CPU, torch needs the C++ compiler {name}, which is not installed; "
            "install it, name another one in the environment variable CXX, or set compile=false"
        )


def _step_in_place(step: Callable[..., Decision]) -> Callable[..., Decision]:
    """`step` such that torch records it as a CUDA graph although it updates its cache in place.

    torch does so only for tensors that it was asked to expect at a fixed address, as
    `Actor.prefill` keeps them. A replay overwrites what the one before returned, so the decision is
    copied.
    """

    def act(
        policy: Policy, inputs: PolicyInputs, cache: Cache, noise: Tensor | None, *lead: Lead | None
    ) -> Decision:
        for tensor in cache.tensors().values():
            torch._dynamo.mark_static_address(tensor)
        return Decision(*(output.clone() for output in step(policy, inputs, cache, noise, *lead)))

    return act


def _override(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Replace a method of one module; deepcopy binds the copy's method to the copy."""
    setattr(module, name, MethodType(function, module))


class _Compiled(Generic[P, R]):
    """A function as one graph for each set of shapes; with `gradients`, only where they are wanted.

    Beyond `MAX_GRAPHS` it warns once; compiled shapes stay compiled, further ones run eagerly.
    """

    def __init__(
        self,
        function: Callable[P, R],
        device: torch.device,
        *,
        gradients: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        # Imported here: it takes most of a second, which only those who compile should wait.
        import torch._dynamo.config
        import torch._dynamo.exc
        import torch._functorch.config

        self._function, self._device = function, device
        self._gradients, self._cuda_graph = gradients, cuda_graph
        options: dict[str, str | int | bool | Callable[..., object]] = {}
        if device.type == "cpu":
            # The code around the kernels is C++ too. The filter drops its warnings about
            # operations that it looks up by name, which have no effect here.
            options["cpp_wrapper"] = True
            logging.getLogger("torch._inductor.ir").addFilter(_is_relevant)
        if gradients:
            # With buffers reused in place, torch 2.11 to 2.15 overwrite what the forward pass keeps
            # for the backward pass while a view of a part of it is still to be read. The attention
            # avoids such views (`_softmax`); this covers all others.
            options["inplace_buffers"] = False
        if cuda_graph:
            options["triton.cudagraphs"] = True
        names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")  # the latter in torch 2.6
        self._limit_errors: tuple[type[Exception], ...] = tuple(
            getattr(torch._dynamo.exc, name) for name in names if hasattr(torch._dynamo.exc, name)
        )
        self._run = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the compiled function."""
        if self._gradients and not torch.is_grad_enabled():
            # One more graph for the few calls without gradients would cost more than it saves.
            return self._function(*args, **kwargs)
        if torch.compiler.is_compiling():
            return self._function(*args, **kwargs)
        try:
            return self._call_compiled(*args, **kwargs)
        except self._limit_errors:  # Raised before anything ran, so nothing is done twice.
            warnings.warn(
                f"{self._function.__qualname__} was called with more than {MAX_GRAPHS} sets of "
                "shapes and kinds of torso; further ones run without the compiler, slower, with "
                "the same results: call it with fewer different numbers of rows and steps",
                stacklevel=2,
            )
        # From now on compiled graphs are looked up and nothing new is compiled.
        self._run = torch._dynamo.run(self._function)
        return self._run(*args, **kwargs)

    def _call_compiled(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # Around every call: any call may compile, and each thread has its own settings.
        with torch._dynamo.config.patch(cache_size_limit=MAX_GRAPHS):
            if not self._gradients or self._device.type != "cpu":
                return self._run(*args, **kwargs)
            # Recompute cheap results in the backward pass. By default the compiler keeps the masks
            # of ReLUs, which its CPU code writes and reads element by element: a fifth of a
            # compiled layer's time.
            with torch._functorch.config.patch(aggressive_recomputation=True):
                return self._run(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> "_Compiled[P, R]":
        """Copies share the graphs, which hold no weights."""
        return self


def _is_relevant(record: logging.LogRecord) -> bool:
    return "missing a c-shim implementation" not in record.getMessage()
