"""The torso's sizes and choices; what they mean is in ARCHITECTURE.md."""

from dataclasses import dataclass, fields

from mtxl_rl.torso.gates import GATES

KINDS = ("transformer", "gru", "lstm", "none")
LONG_TERM_KINDS = ("delta", "none")
DECAYS = ("none", "coupled", "free")

# What only the transformer reads. Sizes are not here: presets set them for every kind.
_TRANSFORMER_CHOICES = ("gate", "mogrifier_rounds", "long_term", "decay")


@dataclass(kw_only=True, slots=True)
class TorsoConfig:
    """A gated Memory Transformer-XL, or one of its baselines.

    Raises:
        ValueError: a size is not positive, `num_heads` does not divide `width`, `segment_length`
            exceeds `window_length`, a name is unknown, or a choice has no effect beside another.
    """

    kind: str = "transformer"
    """transformer; or a baseline: gru, lstm (N layers of the cell), none (N feed-forward layers
    that remember nothing)."""
    width: int = 128
    """Features per step, D; a multiple of num_heads."""
    num_parameters: int = 0
    """Parameters of the torso: the width is chosen to come nearest; 0: as width says."""
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
    gate: str = "gru"
    """How sub-layers join the stream: gru, residual, input, output, highway, sigtanh, brc, nbrc."""
    gate_bias: float = 2.0
    """Bias of the gates: 2 starts every sub-layer near the identity (GTrXL, section 3.2)."""
    mogrifier_rounds: int = 0
    """Rounds in which a gate's inputs modulate each other before it (the mogrifier); 0: none."""
    long_term: str = "delta"
    """Long-term memory: delta (a matrix per head, written by the delta rule) or none."""
    decay: str = "none"
    """Decay of the delta memory: none, coupled (only while it writes) or free."""

    def __post_init__(self) -> None:
        """Check every field against the others."""
        for field in ("width", "num_layers", "num_heads", "feedforward_multiple", "window_length"):
            _require_positive(field, getattr(self, field))
        _require_positive("segment_length", self.segment_length)
        for field in ("num_persistent", "num_parameters", "mogrifier_rounds"):
            if getattr(self, field) < 0:
                raise ValueError(f"torso.{field}={getattr(self, field)} must be 0 or more")
        _require_one_of("kind", self.kind, KINDS)
        _require_one_of("gate", self.gate, GATES)
        _require_one_of("long_term", self.long_term, LONG_TERM_KINDS)
        _require_one_of("decay", self.decay, DECAYS)
        if self.kind == "transformer":
            self._check_transformer()
        else:
            self._check_baseline()

    @property
    def head_width(self) -> int:
        """Features per head, E."""
        return self.width // self.num_heads

    @property
    def width_multiple(self) -> int:
        """What `width` must be a multiple of."""
        return self.num_heads if self.kind == "transformer" else 1

    @property
    def receptive_field(self) -> int:
        """How many steps back the stack reaches without long-term memory: N x M."""
        return self.num_layers * self.window_length if self.kind == "transformer" else 0

    @property
    def has_long_term(self) -> bool:
        """Whether anything is remembered past the window, a recurrent state included."""
        return self.long_term != "none" if self.kind == "transformer" else self.kind != "none"

    def _check_transformer(self) -> None:
        if self.width % self.num_heads:
            divisors = [h for h in range(1, self.width + 1) if self.width % h == 0 and h <= 64]
            raise ValueError(
                f"torso.num_heads={self.num_heads} must divide torso.width={self.width}; "
                f"try one of {divisors}"
            )
        if self.segment_length > self.window_length:
            raise ValueError(
                f"torso.segment_length={self.segment_length} must be at most "
                f"torso.window_length={self.window_length}: the long-term memory is written from "
                "the steps in the window; lower the one or raise the other"
            )
        if self.long_term == "none" and self.decay != "none":
            raise ValueError(
                f"torso.decay={self.decay} has no effect with torso.long_term=none; "
                "set torso.decay=none or torso.long_term=delta"
            )

    def _check_baseline(self) -> None:
        defaults = {field.name: field.default for field in fields(TorsoConfig)}
        for choice in _TRANSFORMER_CHOICES:
            value = getattr(self, choice)
            if value == defaults[choice] or (choice, self.kind) == ("gate", "none"):
                continue
            raise ValueError(
                f"torso.{choice}={value} has no effect with torso.kind={self.kind}; leave it out, "
                "or set torso.kind=transformer"
            )


def _require_positive(field: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"torso.{field}={value} must be 1 or more")


def _require_one_of(field: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"torso.{field}={value} is unknown; choose one of {', '.join(legal)}")
