"""Arithmetic and memory traffic of a policy, counted on paper from its sizes. Nothing is run."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.rollout import Shapes
from mtxl_rl.torso import MemoryTransformer, TorsoConfig

# M window, S segment, D width, E head width.

_BACKWARD = 2
"""A product's gradients are two products of its size."""
_ADAM_PASSES = 8
"""Read: weight, gradient, two moments, the gradient for its norm; write: weight and moments."""


class Cost(NamedTuple):
    """Of one step of one environment."""

    flops: float
    """Floating-point operations of the matrix products, a multiply-add counted as two."""
    bytes: float
    """The least traffic: every product reads its operands and writes its result once."""


class _Product(NamedTuple):
    """A map of `rows` vectors, per step, by a matrix of weights."""

    rows: float
    size_in: int
    size_out: int
    weights: int


def acting_cost(policy: Policy, shapes: Shapes, *, num_envs: int) -> Cost:
    """One step of acting in a batch of `num_envs` environments."""
    products = [*_encoder_products(policy, shapes), *_linear_products(policy, extra_rows={})]
    inner = _attention(policy, keys=policy.torso.config.window_length + 1)
    inner += _matrix_steps(policy)
    weights = sum(p.weights for p in products)
    traffic = sum(p.rows * (p.size_in + p.size_out) for p in products) + inner.bytes
    return Cost(_flops(products) + inner.flops, 4 * (weights / num_envs + traffic))


def learning_cost(policy: Policy, shapes: Shapes, *, span_length: int, num_spans: int) -> Cost:
    """One sample of the learner in a minibatch of `num_spans` spans, one epoch: both passes."""
    config = policy.torso.config
    num_samples = span_length * num_spans
    block = min(span_length, config.window_length)
    extra = {
        "key_value": config.window_length / span_length,
        "projection": (config.window_length + 1) / num_samples - 1,
    }
    products = [*_encoder_products(policy, shapes), *_linear_products(policy, extra_rows=extra)]
    inner = _attention(policy, keys=config.window_length + block)
    inner += _matrix_segments(policy, span_length=span_length)
    passes = 1 + _BACKWARD
    traffic = sum(p.rows * (p.size_in + p.size_out) for p in products) + inner.bytes
    weights = sum(p.numel() for p in policy.parameters()) * (passes + _ADAM_PASSES) / num_samples
    return Cost(passes * (_flops(products) + inner.flops), 4 * (weights + passes * traffic))


class _Inner(NamedTuple):
    """Products of data with data; `bytes` in numbers of four bytes."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "_Inner") -> "_Inner":  # type: ignore[override]
        return _Inner(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: int) -> "_Inner":
        return _Inner(self.flops * factor, self.bytes * factor)


def _flops(products: list[_Product]) -> float:
    return sum(2 * p.rows * p.weights for p in products)


def _encoder_products(policy: Policy, shapes: Shapes) -> list[_Product]:
    """The encoder's, by the shapes that one observation takes on its way."""
    found: list[_Product] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        weights = module.weight.numel()
        places = out.numel() // module.weight.shape[0]
        size_in = given[0].numel() // places
        found.append(_Product(places, size_in, module.weight.shape[0], weights))

    encoder = copy.deepcopy(policy.encoder).to("meta")
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(note)
    encoder({
        key: torch.empty(1, *leaf, dtype=dtype, device="meta")
        for key, (leaf, dtype) in shapes.items()
    })  # fmt: skip
    return found


def _linear_products(policy: Policy, *, extra_rows: dict[str, float]) -> Iterator[_Product]:
    """Every other map by weights; those named in `extra_rows` meet more or fewer rows than one."""
    for path, module in policy.named_modules():
        name = path.rsplit(".", 1)[-1]
        if path.startswith("encoder."):
            continue
        if isinstance(module, nn.Linear):
            in_attention = ".attention." in path
            rows = 1 + (extra_rows.get(name, 0.0) if in_attention else 0.0)
            if name == "projection" and in_attention and not extra_rows:
                continue  # acting projects the distances once per rollout
            yield _Product(rows, module.in_features, module.out_features, module.weight.numel())
        elif isinstance(module, nn.GRU | nn.LSTM):
            weights = sum(w.numel() for w in module.parameters() if w.ndim > 1)
            size = module.hidden_size * module.num_layers
            yield _Product(1, 2 * size, weights // (2 * module.hidden_size), weights)


def _attention(policy: Policy, *, keys: int) -> _Inner:
    """Logits by content and by distance, and the weighted sum of values.

    Slots and tokens, which the attention reads too, are left out.
    """
    if not isinstance(policy.torso, MemoryTransformer):
        return _Inner()
    config = policy.torso.config
    width, pairs = config.width, config.num_persistent
    positional = config.window_length + 1 if config.position in ("sinusoidal", "learned") else 0
    flops = 2 * width * (2 * (keys + pairs) + positional)
    # Every query's own logits and weights; keys and values once per query when acting, and once
    # per block when learning, which is less than the logits and left out there.
    traffic = 2 * config.num_heads * (keys + pairs + positional)
    if keys == config.window_length + 1:
        traffic += 2 * width * keys
    return _Inner(flops, traffic).times(config.num_layers)


def _matrices(config: TorsoConfig) -> int:
    """Layers whose long-term memory is a matrix [E, E] per head; AGaLiTe's is larger."""
    return len(config.layers_with_memory) if config.long_term in ("delta", "linear") else 0


def _matrix_steps(policy: Policy) -> _Inner:
    """One read of W, and one step of the recursion that writes it."""
    config = policy.torso.config
    size = config.width * config.head_width
    writes = 4 if config.long_term == "delta" else 2
    return _Inner((2 + writes) * size, 3 * size).times(_matrices(config))


def _matrix_segments(policy: Policy, *, span_length: int) -> _Inner:
    """The chunkwise write of a segment of S steps, per step, and a read of two versions of W.

    Per head: K K^T, a triangular inverse, K^T by it, that by K and by V, and W -> keep W.
    """
    config = policy.torso.config
    segment, head = min(config.segment_length, span_length), config.head_width
    write = 2.0 * segment * head + 2 * head * head
    if config.long_term == "delta":
        write += 2 * segment * head + 2 * head * head + 2 * head**3 / segment
        write += segment**2 / 3
    per_head = write + 4 * head * head
    traffic = 2 * segment + 8 * head + 4 * head * head / segment
    return _Inner(per_head, traffic).times(config.num_heads * _matrices(config))
