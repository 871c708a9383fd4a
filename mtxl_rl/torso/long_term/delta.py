"""The delta rule: a matrix per head that overwrites what it stored under a similar key."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.long_term.interface import LongTermMemory, read_matrix
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, D width,
# H heads, E head width.


class DeltaWrite(NamedTuple):
    """A segment's write as an affine map of the memory: W -> keep @ W + add."""

    keep: Float[Tensor, "*batch H E E"]
    add: Float[Tensor, "*batch H E E"]


def delta_rule(
    key: Float[Tensor, "*batch S E"],
    value: Float[Tensor, "*batch S V"],
    strength: Float[Tensor, "*batch S"],
    log_decay: Float[Tensor, "*batch S"] | None,
) -> tuple[Float[Tensor, "*batch E E"], Float[Tensor, "*batch E V"]]:
    """S steps of the gated delta rule as one affine map, W_0 -> keep @ W_0 + add.

    Per step, with k of unit length: W <- a W, then W <- W + b k (v - W^T k)^T. Schlag et al. 2021
    (arXiv 2102.11174); the chunkwise form is the WY / UT transform of Yang et al. 2024
    (arXiv 2406.06484), with decay as in arXiv 2412.06464. With g_i = log a_1 + .. + log a_i and
    G_ij = exp(g_i - g_j) for j < i, else 0:

        (I + diag(b) (K K^T * G)) U = diag(b) (V - diag(exp g) K W_0)
        W_S = exp(g_S) W_0 + (diag(exp(g_S - g)) K)^T U

    U is affine in W_0, and W_S reads the inverse on the left through K alone: with

        N = (diag(exp(g_S - g)) K)^T (I + diag(b) (K K^T * G))^-1 diag(b)

    the map is keep = exp(g_S) I - N diag(exp g) K and add = N V. Without `log_decay` every exp(..)
    is 1.
    """
    head_width = key.shape[-1]
    mixing = strength[..., None] * (key @ key.mT)
    kept = torch.eye(head_width, dtype=key.dtype, device=key.device)
    reading = remaining = key
    if log_decay is not None:
        total = log_decay.cumsum(dim=-1)
        # Above the diagonal the exponents are positive and may overflow.
        mixing = mixing * (total[..., :, None] - total[..., None, :]).tril(-1).exp()
        reading = total.exp()[..., None] * key
        remaining = (total[..., -1:] - total).exp()[..., None] * key
        kept = total[..., -1, None, None].exp() * kept
    inverse: Tensor = UnitTriangularInverse.apply(mixing)  # type: ignore[no-untyped-call]
    writing = remaining.mT @ (inverse * strength[..., None, :])
    return kept - writing @ reading, writing @ value


class UnitTriangularInverse(torch.autograd.Function):
    """X = (I + A)^-1, where A is the part of the input below the diagonal.

    Its gradient is dA = -X^T dX X^T: two matrix products, faster than the batch of solves that the
    gradient of a solve needs. It has no `jvp` for forward mode, because torch.compile refuses
    functions that have one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(lower: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch S S"]:
        """The inverse by substitution, as accurate as a solve."""
        identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ANN401, ARG004
        """Keep the inverse. Separate from `forward`, as torch.func's grad and vmap require."""
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch S S"]:  # noqa: ANN401
        """The gradient of A."""
        (inverse,) = ctx.saved_tensors
        return (inverse.mT @ gradient @ inverse.mT).neg().tril(-1)


class DeltaMemory(LongTermMemory):
    """A matrix W [E, E] per head, written by the delta rule and read as normalised W^T q.

    A write of strength b under the key k replaces the fraction b of the value that W returns for k,
    and leaves values under keys orthogonal to k unchanged. Keys and queries have unit length, b is
    in (0, 1), and `decay` chooses the decay a in (0, 1]:

    - none: a = 1, values are only overwritten;
    - coupled: a = 1 - (1 - alpha) b, alpha in (0, 1), which forgets only while it writes;
    - free: a = alpha (Gated DeltaNet, arXiv 2412.06464).

    The memory and its arithmetic are float32 (or float64), also under autocast and with narrower
    weights.

    Readouts pass an output map here if they are read sequentially; in parallel, that of the
    attention maps them.
    """

    decays = ("none", "coupled", "free")

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__()
        width, num_heads, decay = config.width, config.num_heads, config.decay
        self.num_heads = num_heads
        self.decay = decay
        head_width = width // num_heads
        self.memory_shape = (num_heads, head_width, head_width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.strength = nn.Linear(width, num_heads)
        # sigmoid(4) = 0.98: with free decay, values have a half-life of 34 steps at first.
        self.retention = nn.Linear(width, num_heads) if decay != "none" else None
        if self.retention is not None:
            nn.init.constant_(self.retention.bias, 4.0)
        self.query = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(head_width, eps=1e-6)
        has_output = config.read == "sequential"
        self.output = nn.Linear(width, width, bias=False) if has_output else nn.Identity()

    def encode(
        self, segments: Float[Tensor, "B J S D"], valid: Bool[Tensor, "B J S"] | None = None
    ) -> DeltaWrite:
        """The write of each segment."""
        key, value, strength, log_decay = self._gates(segments)
        if valid is not None:
            strength = strength * valid[..., None]
            log_decay = None if log_decay is None else log_decay * valid[..., None]
        with torch.autocast(segments.device.type, enabled=False):
            keep, add = delta_rule(
                # Contiguous: otherwise each product copies its view.
                rearrange(key, "b j s h e -> b j h s e").contiguous(),
                rearrange(value, "b j s h e -> b j h s e").contiguous(),
                rearrange(strength, "b j s h -> b j h s"),
                None if log_decay is None else rearrange(log_decay, "b j s h -> b j h s"),
            )
        return DeltaWrite(keep, add)

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """W after one segment."""
        keep, add = encoded
        with torch.autocast(memory.device.type, enabled=False):
            return keep @ memory + add

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Update W by one step of the recursion."""
        key, value, strength, log_decay = self._gates(step)
        with torch.autocast(memory.device.type, enabled=False):
            if log_decay is not None:
                memory *= log_decay.exp()[..., None, None]
            stored = (key[..., None, :] @ memory).squeeze(-2)
            change = strength[..., None] * (value - stored)
            memory.addcmul_(key[..., None], change[..., None, :])

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        versions: Float[Tensor, "B V *memory"],
        reads: Bool[Tensor, "B J C two"] | None,
    ) -> Float[Tensor, "B J C D"]:
        """W^T q, normalised per head."""
        query = rearrange(self.query(steps), "b j c (h e) -> b j h c e", h=self.num_heads)
        query = nn.functional.normalize(query.to(versions.dtype), dim=-1)
        with torch.autocast(versions.device.type, enabled=False):
            value = read_matrix(query, versions, reads)
            value = self.norm(value.to(self.norm.weight.dtype))
        readout: Tensor = self.output(rearrange(value, "b j h c f -> b j c (h f)"))
        return readout

    def diagnostics(
        self,
        steps: Float[Tensor, "B T D"],
        versions: Tensor,  # noqa: ARG002
        encoded: tuple[Tensor, ...],  # noqa: ARG002
    ) -> Diagnostics:
        """Strength b and decay a of each step's write, [B, T, H]; key and value, [B, T, H, E]."""
        key, value, strength, log_decay = self._gates(steps)
        retention = torch.ones_like(strength) if log_decay is None else log_decay.exp()
        return {
            "memory/strength": strength,
            "memory/retention": retention,
            "memory/key": key,
            "memory/value": value,
        }

    def read_diagnostics(self, steps: Float[Tensor, "B T D"]) -> Diagnostics:
        """Unit queries of the steps, [B, T, H, E], in float32 or wider."""
        query = rearrange(self.query(steps), "b t (h e) -> b t h e", h=self.num_heads)
        full = torch.promote_types(steps.dtype, torch.float32)
        return {"memory/query": nn.functional.normalize(query.to(full), dim=-1)}

    def _gates(self, steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Keys and values [..., H, E], strengths and log decays [..., H], in float32 or wider."""
        full = torch.promote_types(steps.dtype, torch.float32)
        pairs = self.key_value(steps).to(full)
        key, value = rearrange(pairs, "... (two h e) -> two ... h e", two=2, h=self.num_heads)
        strength = torch.sigmoid(self.strength(steps).to(full))
        return (
            nn.functional.normalize(key, dim=-1),
            value,
            strength,
            self._log_decay(steps, strength),
        )

    def _log_decay(self, steps: Tensor, strength: Tensor) -> Tensor | None:
        """Log a per step and head; None without decay."""
        if self.retention is None:
            return None
        logit = self.retention(steps).to(strength.dtype)
        if self.decay == "free":
            return nn.functional.logsigmoid(logit)
        return torch.log1p(-torch.sigmoid(-logit) * strength)
