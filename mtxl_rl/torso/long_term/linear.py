"""Linear attention with decay as a long-term memory: decaying sums of key/value products.

Per step W <- (a_k a_v^T) * W + k v^T. Both rules here decay keys and values separately, so
that a whole segment is a product of matrices and needs no solve.
"""

from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.constant import Constant
from mtxl_rl.torso.diagnostics import Diagnostics
from mtxl_rl.torso.long_term.interface import LongTermMemory, read_matrix
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, D width,
# H heads, F features of a key, E features of a value.

TEMPERATURE = 16.0  # of the decay of gated linear attention (arXiv 2312.06635, section 4.4)
EXPANSION = 4  # features of a key per feature of a head in AGaLiTe (its eta)


class Step(NamedTuple):
    """The key and value that a step adds, and the log decay of each of their features."""

    key: Float[Tensor, "*batch H F"]
    value: Float[Tensor, "*batch H E"]
    log_decay_key: Float[Tensor, "*batch H F"]
    log_decay_value: Float[Tensor, "*batch H E"]


def _log_decay(num_heads: int) -> Float[Tensor, "H 1"]:
    """RetNet's decay, log(1 - 2^(-5 - h))."""
    full = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads).to(full))))[:, None]


class RetentionFeatures(nn.Module):
    """Gated linear attention (Yang et al. 2023, arXiv 2312.06635) or RetNet (arXiv 2307.08621).

    `decay` is `fixed`, RetNet's 1 - 2^(-5 - h) of head h, or `free`: per feature of the key,
    sigmoid(W x)^(1 / 16). Readouts are normalised per head.
    """

    def __init__(self, width: int, *, num_heads: int, decay: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width = width // num_heads
        self.num_features, self.num_values = head_width, head_width
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.retention = nn.Linear(width, width) if decay == "free" else None
        if self.retention is not None:
            # sigmoid(4)^(1/16): values have a half-life of 610 steps at first.
            nn.init.constant_(self.retention.bias, 4.0)
        self.fixed = Constant(partial(_log_decay, num_heads))
        self.norm = nn.RMSNorm(head_width, eps=1e-6)

    def forward(self, steps: Float[Tensor, "*batch D"]) -> Step:
        """The steps' keys, values and decays."""
        full = torch.promote_types(steps.dtype, torch.float32)
        pairs = self.key_value(steps).to(full)
        key, value = rearrange(pairs, "... (two h e) -> two ... h e", two=2, h=self.num_heads)
        if self.retention is None:
            log_decay = self.fixed().to(full).expand_as(key)
        else:
            logit = self.retention(steps).to(full)
            log_decay = nn.functional.logsigmoid(logit) / TEMPERATURE
            log_decay = rearrange(log_decay, "... (h e) -> ... h e", h=self.num_heads)
        scale = key.shape[-1] ** -0.5
        return Step(key * scale, value, log_decay, torch.zeros_like(value))

    def queries(self, steps: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch H F"]:
        """The steps' queries."""
        return rearrange(self.query(steps), "... (h e) -> ... h e", h=self.num_heads)

    def normalise(self, value: Float[Tensor, "*batch E"]) -> Tensor:
        """The value at unit mean square per head."""
        return self.norm(value.to(self.norm.weight.dtype))


class AGaLiTeFeatures(nn.Module):
    """The feature map and the gates of AGaLiTe (Pramanik et al. 2023, arXiv 2310.15719, section 3).

    Keys and queries are outer products relu(p) x relu(k) of `EXPANSION` and E features. A step
    replaces a fraction of the memory, separately per feature of key and value:

        W <- ((1 - gamma) (1 - beta)^T) * W + (gamma * k) (beta * v)^T
        s <- (1 - gamma) * s + gamma * k,   read: W^T q / (s . q)

    The paper approximates W by a sum of cosines to save memory. Here W itself is kept, with s as
    the last feature of its values.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width = width // num_heads
        self.num_features, self.num_values = EXPANSION * head_width, head_width + 1
        small = num_heads * EXPANSION
        self.wide = nn.Linear(width, 5 * width, bias=False)  # key, gamma, query, value, beta
        self.small = nn.Linear(width, 3 * small, bias=False)  # p of key, gamma and query

    def forward(self, steps: Float[Tensor, "*batch D"]) -> Step:
        """The steps' keys, values and decays."""
        key, gamma, _, value, beta = self._wide(steps)
        p_key, p_gamma, _ = self._small(steps)
        gamma = _outer(torch.sigmoid(p_gamma), torch.sigmoid(gamma))
        key = gamma * _outer(torch.relu(p_key), torch.relu(key))
        ones = torch.ones_like(value[..., :1])
        value = torch.cat([torch.sigmoid(beta) * value, ones], dim=-1)
        log_decay_value = torch.cat([nn.functional.logsigmoid(-beta), 0 * ones], dim=-1)
        # A fraction of 1 would leave log 0.
        return Step(key, value, torch.log1p(-gamma.clamp(max=1 - 1e-6)), log_decay_value)

    def queries(self, steps: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch H F"]:
        """The steps' queries."""
        return _outer(torch.relu(self._small(steps)[2]), torch.relu(self._wide(steps)[2]))

    def normalise(self, value: Float[Tensor, "*batch E"]) -> Tensor:
        """W^T q / (s . q)."""
        return value[..., :-1] / (value[..., -1:] + 1e-6)

    def _wide(self, steps: Tensor) -> Tensor:
        full = torch.promote_types(steps.dtype, torch.float32)
        return rearrange(
            self.wide(steps).to(full), "... (n h e) -> n ... h e", n=5, h=self.num_heads
        )

    def _small(self, steps: Tensor) -> Tensor:
        full = torch.promote_types(steps.dtype, torch.float32)
        return rearrange(
            self.small(steps).to(full), "... (n h e) -> n ... h e", n=3, h=self.num_heads
        )


def _outer(first: Float[Tensor, "*batch X"], second: Float[Tensor, "*batch Y"]) -> Tensor:
    """The outer product of the last axes, flattened."""
    return (first[..., :, None] * second[..., None, :]).flatten(-2)


class DecayingSum(LongTermMemory):
    """A matrix W [F, E] per head: the decaying sum of the products of `features`.

    The memory and its arithmetic are float32 (or float64), also under autocast and with narrower
    weights. Readouts pass an output map here if they are read sequentially.
    """

    def __init__(self, config: TorsoConfig, features: RetentionFeatures | AGaLiTeFeatures) -> None:
        super().__init__()
        self.features = features
        self.memory_shape = (features.num_heads, features.num_features, features.num_values)
        width, has_output = config.width, config.read == "sequential"
        self.output = nn.Linear(width, width, bias=False) if has_output else nn.Identity()

    def encode(
        self, segments: Float[Tensor, "B J S D"], valid: Bool[Tensor, "B J S"] | None = None
    ) -> tuple[Tensor, ...]:
        """Each segment's decays of keys [.., H, F] and values [.., H, E], and the sum it adds."""
        step = self.features(segments)
        if valid is not None:
            step = Step(*(part * valid[..., None, None] for part in step))
        with torch.autocast(segments.device.type, enabled=False):
            to_end = [log.flip(2).cumsum(2).flip(2) - log for log in (step[2], step[3])]
            add = torch.einsum(
                "bjshf,bjshe->bjhfe", step.key * to_end[0].exp(), step.value * to_end[1].exp()
            )
            return step.log_decay_key.sum(2).exp(), step.log_decay_value.sum(2).exp(), add

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """W after one segment."""
        decay_key, decay_value, add = encoded
        return decay_key[..., None] * decay_value[..., None, :] * memory + add

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Update W by one step of the recursion."""
        key, value, log_decay_key, log_decay_value = self.features(step)
        memory *= (log_decay_key[..., None] + log_decay_value[..., None, :]).exp()
        memory.addcmul_(key[..., None], value[..., None, :])

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        versions: Float[Tensor, "B V *memory"],
        reads: Bool[Tensor, "B J C two"] | None,
    ) -> Float[Tensor, "B J C D"]:
        """W^T q, normalised."""
        query = rearrange(self.features.queries(steps), "b j c h f -> b j h c f")
        with torch.autocast(versions.device.type, enabled=False):
            query = query.to(versions.dtype)
            value = self.features.normalise(read_matrix(query, versions, reads))
        value = rearrange(value, "b j h c e -> b j c (h e)")
        readout: Tensor = self.output(value.to(steps.dtype))
        return readout

    def diagnostics(
        self,
        steps: Float[Tensor, "B T D"],
        versions: Tensor,  # noqa: ARG002
        encoded: tuple[Tensor, ...],  # noqa: ARG002
    ) -> Diagnostics:
        """Norm of each step's addition, and its decay averaged over features, [B, T, H]."""
        step = self.features(steps)
        return {
            "memory/strength": step.key.norm(dim=-1) * step.value.norm(dim=-1),
            "memory/retention": step.log_decay_key.exp().mean(-1)
            * step.log_decay_value.exp().mean(-1),
        }


class LinearMemory(DecayingSum):
    """Linear attention with the decay that `config` chooses."""

    decays = ("fixed", "free")

    def __init__(self, config: TorsoConfig) -> None:
        features = RetentionFeatures(config.width, num_heads=config.num_heads, decay=config.decay)
        super().__init__(config, features)


class AGaLiTeMemory(DecayingSum):
    """AGaLiTe's memory."""

    def __init__(self, config: TorsoConfig) -> None:
        super().__init__(config, AGaLiTeFeatures(config.width, num_heads=config.num_heads))
