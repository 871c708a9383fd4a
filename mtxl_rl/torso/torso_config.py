"""The torso's sizes and choices; what they mean is in ARCHITECTURE.md."""

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtxl_rl.torso.long_term import LongTermMemory

KINDS = ("transformer", "gru", "lstm", "mlp")
POSITIONS = ("sinusoidal", "learned", "rotary", "none")
CELLS = ("gru", "brc", "nbrc")
GATES = ("residual", "input", "output", "highway", "sigtanh", *CELLS)
READS = ("parallel", "sequential")
MAX_HALF_LIFE = 1_000_000
"""Longest half-life in writes; in float32 a gate with a longer half-life would round to 1 and never
forget."""

_POSITIVE = (
    "width", "num_layers", "num_heads", "feedforward_multiple", "window_length", "segment_length"
)  # fmt: skip
_COUNTS = ("num_persistent", "num_parameters", "mogrifier_rounds")
# Fields that only the transformer reads. Baselines accept sizes (`_UNREAD_SIZES`) and `read`, which
# presets and suites set for every torso, and refuse these.
_TRANSFORMER_CHOICES = (
    "gate",
    "mogrifier_rounds",
    "position",
    "all_attention",
    "odometry",
    "long_term",
    "decay",
    "memory_layers",
    "gradient_checkpointing",
    "sublayers",
    "slots",
    "tokens",
)
_UNREAD_SIZES = {
    "transformer": (),
    "gru": ("num_heads", "window_length", "num_persistent", "gate_bias", "feedforward_multiple"),
    "lstm": ("num_heads", "window_length", "num_persistent", "gate_bias", "feedforward_multiple"),
    "mlp": ("num_heads", "window_length", "num_persistent"),
}


@dataclass(kw_only=True, slots=True)
class SlotsConfig:
    """The `slots` memory."""

    num_slots: int = 16
    """Slots, L."""
    cell: str = "nbrc"
    """The gated cell that updates a slot: nbrc, brc or gru."""
    write_iterations: int = 1
    """Rounds of attention and cell per write."""
    max_half_life: float = 32.0
    """Longest half-life of a slot at initialisation, in writes; the shortest is 1."""
    is_shared: bool = False
    """Share one memory, written from the inputs of all its layers, instead of one per layer."""
    detach_inputs: bool = False
    """Stop gradients from a write to the layer inputs that it reads (the rule of 2020)."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        _require_positive("slots.num_slots", self.num_slots)
        _require_positive("slots.write_iterations", self.write_iterations)
        check_choice("torso.slots.cell", self.cell, CELLS)
        if not 1 <= self.max_half_life <= MAX_HALF_LIFE:
            raise ValueError(
                f"torso.slots.max_half_life={self.max_half_life} must be in 1 .. {MAX_HALF_LIFE:,}"
            )


@dataclass(kw_only=True, slots=True)
class TokensConfig:
    """The `tokens` memory (Memory Transformer)."""

    num_tokens: int = 8
    """Memory tokens in front of each segment, L."""
    separate_control: bool = False
    """Update the tokens with separate weights (MemCtrl) instead of the layer's."""
    bottleneck: bool = False
    """Steps see no other step, only the tokens (MemBottleneck)."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require_positive("tokens.num_tokens", self.num_tokens)


@dataclass(kw_only=True, slots=True)
class SublayersConfig:
    """Options of the attention and feed-forward sub-layers; the defaults are GTrXL's."""

    activation: str = "relu"
    """Activation of the feed-forward's hidden units: relu or gelu."""
    glu: bool = False
    """Gated linear units: hidden units are products of an activated and a linear map."""
    output_relu: bool = True
    """A ReLU on every sub-layer's output before its gate."""
    one_kv_head: bool = False
    """One head of keys and values for all heads of queries (multi-query attention)."""
    attention_dropout: float = 0.0
    """Dropout of the attention's weights in training; agents need 0: acting must equal learning."""
    output_dropout: float = 0.0
    """Dropout of the attention's output, likewise."""
    feedforward_dropout: float = 0.0
    """Dropout of the feed-forward's hidden units, likewise."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_choice("torso.sublayers.activation", self.activation, ("relu", "gelu"))
        for name in ("attention_dropout", "output_dropout", "feedforward_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"torso.sublayers.{name}={getattr(self, name)} must be in 0 .. 1, 1 excluded"
                )

    @property
    def has_dropout(self) -> bool:
        """Whether any dropout is active in training."""
        return max(self.attention_dropout, self.output_dropout, self.feedforward_dropout) > 0


PARTS = {"sublayers": SublayersConfig, "slots": SlotsConfig, "tokens": TokensConfig}
"""The fields of `TorsoConfig` that are nested configurations."""


@dataclass(kw_only=True, slots=True)
class TorsoConfig:
    """A gated Memory Transformer-XL, or one of its baselines.

    The baselines read fewer fields. They ignore other sizes and `read`, and refuse other choices:

    - transformer reads all;
    - gru and lstm read width, num_layers and num_parameters;
    - mlp reads these, feedforward_multiple, gate and gate_bias.

    Training reads `segment_length` with every kind: it is the unit of ppo.bptt_segments.

    Raises:
        ValueError: a size is not a positive integer, `num_heads` does not divide `width`,
            `segment_length` exceeds `window_length`, a name is unknown, or an option has no effect
            in combination with another.
    """

    kind: str = "transformer"
    """transformer; or a baseline: gru, lstm (N layers of the cell), mlp (N feed-forward layers
    without memory)."""
    width: int = 128
    """Features per step, D; a multiple of num_heads."""
    num_parameters: int = 0
    """Choose the width that comes closest to this number of parameters; 0: use `width`."""
    num_layers: int = 2
    """Layers, N."""
    num_heads: int = 4
    """Heads of the attention and of the long-term memory, H."""
    feedforward_multiple: int = 2
    """Hidden units of the feed-forward sub-layer, in multiples of width."""
    window_length: int = 64
    """Short-term memory in steps, M: how far back each layer attends."""
    segment_length: int = 32
    """Steps between two writes of the long-term memory, S; at most window_length."""
    num_persistent: int = 8
    """Learned key/value pairs per head that every step attends to, P; 0 or more."""
    position: str = "sinusoidal"
    """Position embeddings of the attention: sinusoidal (Transformer-XL, with its u and v), learned
    (a table), rotary or none."""
    all_attention: bool = False
    """Replace the feed-forward sub-layer by the persistent pairs (All-attention)."""
    gate: str = "gru"
    """Gate of the sub-layers: gru, residual, input, output, highway, sigtanh, brc, nbrc."""
    gate_bias: float = 2.0
    """Initial bias of the gates: with 2, every sub-layer is close to the identity at first (GTrXL,
    section 3.2)."""
    mogrifier_rounds: int = 0
    """Mogrifier rounds, in which a gate's inputs modulate each other first; 0: none."""
    odometry: bool = False
    """Estimate the movement of each step from its features and those of the step before, and add
    the sum of the movements since the episode's start to the inputs: for agents that move in a
    plane and do not observe where they are. auxiliary.movement trains it."""
    long_term: str = "delta"
    """Long-term memory: delta (the delta rule), linear (linear attention with decay), agalite,
    slots (the Memory Transformer-XL of 2020), tokens (the Memory Transformer) or none."""
    read: str = "sequential"
    """Read of a matrix memory (delta, linear, agalite): sequential or parallel. sequential: by a
    gated sub-layer after the attention. parallel: by heads next to the attention's, behind one
    output map and gate."""
    decay: str = "none"
    """Decay of the delta memory: none, coupled (only while it writes) or free; of the linear
    memory: fixed (RetNet) or free (gated linear attention)."""
    memory_layers: list[int] = field(default_factory=list)
    """Layers that have a long-term memory, counted from 1; empty: all."""
    gradient_checkpointing: bool = False
    """Keep only each layer's inputs for the backward pass, which runs the layer again: less memory,
    one more forward pass (Chen et al. 2016, arXiv 1604.06174)."""
    sublayers: SublayersConfig = field(default_factory=SublayersConfig)
    """Options of the sub-layers."""
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    """Settings of long_term=slots."""
    tokens: TokensConfig = field(default_factory=TokensConfig)
    """Settings of long_term=tokens."""

    def __post_init__(self) -> None:
        """Check every field against the others."""
        self._check_types()
        check_at_least(self, 1, *_POSITIVE, prefix="torso.")
        check_at_least(self, 0, *_COUNTS, prefix="torso.")
        check_choice("torso.kind", self.kind, KINDS)
        check_choice("torso.gate", self.gate, GATES)
        check_choice("torso.position", self.position, POSITIONS)
        check_choice("torso.long_term", self.long_term, long_term_names())
        check_choice("torso.read", self.read, READS)
        if self.kind == "transformer":
            self._check_transformer()
        else:
            self._check_baseline()

    @property
    def unread(self) -> tuple[str, ...]:
        """The fields that this torso accepts and ignores."""
        sizes = _UNREAD_SIZES[self.kind]
        has_matrix = bool(self.layers_with_memory) and not self.reads_slots
        return sizes if has_matrix else (*sizes, "read")

    @property
    def head_width(self) -> int:
        """Features per head, E."""
        return self.width // self.num_heads

    @property
    def width_multiple(self) -> int:
        """The number that divides `width`; rotary positions rotate pairs of a head's features."""
        if self.kind != "transformer":
            return 1
        return self.num_heads * (2 if self.position == "rotary" else 1)

    @property
    def receptive_field(self) -> int:
        """Steps back that the stack sees without long-term memory: N x M."""
        return self.num_layers * self.window_length if self.kind == "transformer" else 0

    @property
    def has_long_term(self) -> bool:
        """Whether it has a memory beyond the window, which includes a recurrent state."""
        return self.long_term != "none" if self.kind == "transformer" else self.kind != "mlp"

    @property
    def layers_with_memory(self) -> tuple[int, ...]:
        """The indices of the layers that have a long-term memory."""
        if self.kind != "transformer" or self.long_term == "none":
            return ()
        return tuple(n - 1 for n in self.memory_layers) or tuple(range(self.num_layers))

    @property
    def is_shared(self) -> bool:
        """Whether layers share one long-term memory."""
        return self.long_term == "slots" and self.slots.is_shared

    @property
    def reads_slots(self) -> bool:
        """Whether the attention reads the long-term memory as keys without positions."""
        return self.long_term != "none" and memory_classes()[self.long_term].reads_slots

    @property
    def reach(self) -> int:
        """Steps back that a layer's attention sees, 0 .. M."""
        is_bottleneck = self.long_term == "tokens" and self.tokens.bottleneck
        return 0 if is_bottleneck else self.window_length

    def _check_types(self) -> None:
        """Check types; convert integers, as of NumPy, to int, which a torso's file can store."""
        for name in (*_POSITIVE, *_COUNTS):
            setattr(self, name, _integer(name, getattr(self, name)))
        if not isinstance(self.memory_layers, list | tuple):
            raise ValueError(
                f"torso.memory_layers={self.memory_layers} must be a list of layers, as in [1]"
            )
        self.memory_layers = [_integer("memory_layers", n) for n in self.memory_layers]
        if not _is_finite(self.gate_bias):
            raise ValueError(f"torso.gate_bias={self.gate_bias} must be a finite number")
        for name, part in PARTS.items():
            if not isinstance(getattr(self, name), part):
                raise ValueError(
                    f"torso.{name}={getattr(self, name)} must be a {part.__name__}: "
                    f"{name}=mtxl_rl.{part.__name__}(...)"
                )

    def _check_transformer(self) -> None:
        if self.width % self.width_multiple:
            per_head = 2 if self.position == "rotary" else 1
            divisors = [h for h in range(1, 65) if self.width % (h * per_head) == 0]
            what = "" if per_head == 1 else " into even parts for torso.position=rotary"
            raise ValueError(
                f"torso.num_heads={self.num_heads} must divide torso.width={self.width}{what}; "
                f"try one of {divisors}"
            )
        if self.segment_length > self.window_length:
            raise ValueError(
                f"torso.segment_length={self.segment_length} must be at most "
                f"torso.window_length={self.window_length}: the long-term memory is written from "
                "the steps in the window; lower segment_length or raise window_length"
            )
        if self.all_attention and not self.num_persistent:
            raise ValueError(
                "torso.all_attention=true needs torso.num_persistent of 1 or more: the pairs "
                "replace the feed-forward sub-layer"
            )
        self._check_long_term()

    def _check_long_term(self) -> None:
        has_memory = self.long_term != "none"
        legal = memory_classes()[self.long_term].decays if has_memory else ("none",)
        if self.decay not in legal:
            raise ValueError(
                f"torso.decay={self.decay} is not a decay of torso.long_term={self.long_term}; "
                f"choose torso.decay={' or '.join(legal)}"
            )
        for kind in [kind for kind in PARTS if kind in memory_classes()]:
            if self.long_term != kind and getattr(self, kind) != PARTS[kind]():
                raise ValueError(
                    f"torso.{kind} has no effect with torso.long_term={self.long_term}; leave it "
                    f"out, or set torso.long_term={kind}"
                )
        layers = sorted(set(self.memory_layers))
        if layers != list(self.memory_layers) or not all(1 <= n <= self.num_layers for n in layers):
            raise ValueError(
                f"torso.memory_layers={list(self.memory_layers)} must be layers in "
                f"1 .. {self.num_layers} in rising order, or empty for all"
            )
        if layers and self.long_term == "none":
            raise ValueError(
                f"torso.memory_layers={layers} has no effect with torso.long_term=none; leave it "
                "out, or choose a long-term memory"
            )

    def _check_baseline(self) -> None:
        defaults = TorsoConfig()
        for choice in _TRANSFORMER_CHOICES:
            value = getattr(self, choice)
            if value == getattr(defaults, choice) or (choice, self.kind) == ("gate", "mlp"):
                continue
            raise ValueError(
                f"torso.{choice}={value} has no effect with torso.kind={self.kind}; leave it out, "
                "or set torso.kind=transformer"
            )


def torso_config_from(fields: Mapping[str, Any]) -> TorsoConfig:
    """The configuration of fields by name, whose parts may be mappings too."""
    parts = {
        name: PARTS[name](**part) if name in PARTS and isinstance(part, Mapping) else part
        for name, part in fields.items()
    }
    return TorsoConfig(**parts)


def memory_classes() -> dict[str, type["LongTermMemory"]]:
    """The table of long-term memories by name."""
    from mtxl_rl.torso.long_term import LONG_TERM  # Its memories read this module's configuration.

    return LONG_TERM


def long_term_names() -> tuple[str, ...]:
    """The legal `long_term`: the memories of the table `LONG_TERM`, and none."""
    return (*memory_classes(), "none")


def check_at_least(config: object, least: int, *names: str, prefix: str = "") -> None:
    """Raise ValueError if a field is below `least` or is not a number."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{prefix}{name}={value} must be {least} or more")


def check_choice(option: str, value: str, legal: Collection[str]) -> None:
    """Raise ValueError if an option's value is not among the legal ones."""
    if value not in legal:
        raise ValueError(f"{option}={value} is unknown; choose one of {', '.join(legal)}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _integer(field: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"torso.{field}={value!r} must be an integer") from None


def _require_positive(field: str, value: int) -> None:
    if _integer(field, value) < 1:
        raise ValueError(f"torso.{field}={value} must be 1 or more")
