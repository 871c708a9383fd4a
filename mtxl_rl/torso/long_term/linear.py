"""Linear attention with decay as a long-term memory: sums of key/value products that fade.

Per step W <- (a_k a_v^T) * W + k v^T. Where a rule decays keys and values apart, as both do here, a
whole segment is a product of matrices and needs no solve.
"""

from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.torso.constant import Constant
from mtxl_rl.torso.long_term.interface import read_matrix
from mtxl_rl.torso.record import Record

# B rows, J segments or blocks, S steps of a segment, C steps of a block, V versions, D width,
# H heads, F features of a key, E features of a value.

TEMPERATURE = 16.0  # of the decay of gated linear attention (arXiv 2312.06635, section 4.4)
EXPANSION = 4  # features of a key per feature of a head in AGaLiTe (its eta)


class Step(NamedTuple):
    """What a step adds, and the logs of what it leaves of each feature of keys and values."""

    key: Float[Tensor, "*batch H F"]
    value: Float[Tensor, "*batch H E"]
    log_keep_key: Float[Tensor, "*batch H F"]
    log_keep_value: Float[Tensor, "*batch H E"]


def _log_decay(num_heads: int) -> Float[Tensor, "H 1"]:
    """RetNet's, the log of 1 - 2^(-5 - h)."""
    full = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads).to(full))))[:, None]


class RetentionFeatures(nn.Module):
    """Gated linear attention (Yang et al. 2023, arXiv 2312.06635) or RetNet (arXiv 2307.08621).

    `decay` is `fixed`, RetNet's 1 - 2^(-5 - h) of head h, or `free`: per feature of the key,
    sigmoid(W x)^(1 / 16). What is read is normalised per head.
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
            # sigmoid(4)^(1/16): half of what is stored outlives 610 steps at the start.
            nn.init.constant_(self.retention.bias, 4.0)
        self.fixed = Constant(partial(_log_decay, num_heads))
        self.norm = nn.RMSNorm(head_width, eps=1e-6)

    def forward(self, steps: Float[Tensor, "*batch D"]) -> Step:
        """What the steps write."""
        full = torch.promote_types(steps.dtype, torch.float32)
        pairs = self.key_value(steps).to(full)
        key, value = rearrange(pairs, "... (two h e) -> two ... h e", two=2, h=self.num_heads)
        if self.retention is None:
            log_keep = self.fixed().to(full).expand_as(key)
        else:
            logit = self.retention(steps).to(full)
            log_keep = nn.functional.logsigmoid(logit) / TEMPERATURE
            log_keep = rearrange(log_keep, "... (h e) -> ... h e", h=self.num_heads)
        scale = key.shape[-1] ** -0.5
        return Step(key * scale, value, log_keep, torch.zeros_like(value))

    def queries(self, steps: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch H F"]:
        """What the steps ask for."""
        return rearrange(self.query(steps), "... (h e) -> ... h e", h=self.num_heads)

    def normalise(self, found: Float[Tensor, "*batch E"]) -> Tensor:
        """What is found, at unit mean square per head."""
        return self.norm(found.to(self.norm.weight.dtype))


class AGaLiTeFeatures(nn.Module):
    """The feature map and the gates of AGaLiTe (Pramanik et al. 2023, arXiv 2310.15719, section 3).

    Keys and queries are outer products relu(p) x relu(k) of `EXPANSION` and E features; what a step
    writes replaces the fraction it writes, separately per feature of key and value:

        W <- ((1 - gamma) (1 - beta)^T) * W + (gamma * k) (beta * v)^T
        s <- (1 - gamma) * s + gamma * k,   read: W^T q / (s . q)

    The paper then approximates W by a sum of cosines to save memory; W itself is kept here, with
    s as the last feature of its values.
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
        """What the steps write."""
        key, gamma, _, value, beta = self._wide(steps)
        p_key, p_gamma, _ = self._small(steps)
        gamma = _outer(torch.sigmoid(p_gamma), torch.sigmoid(gamma))
        key = gamma * _outer(torch.relu(p_key), torch.relu(key))
        one = torch.ones_like(value[..., :1])
        value = torch.cat([torch.sigmoid(beta) * value, one], dim=-1)
        log_keep_value = torch.cat([nn.functional.logsigmoid(-beta), 0 * one], dim=-1)
        # A fraction of 1 would leave log 0.
        return Step(key, value, torch.log1p(-gamma.clamp(max=1 - 1e-6)), log_keep_value)

    def queries(self, steps: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch H F"]:
        """What the steps ask for."""
        return _outer(torch.relu(self._small(steps)[2]), torch.relu(self._wide(steps)[2]))

    def normalise(self, found: Float[Tensor, "*batch E"]) -> Tensor:
        """W^T q / (s . q)."""
        return found[..., :-1] / (found[..., -1:] + 1e-6)

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
    """All products of a feature of each, as one axis."""
    return (first[..., :, None] * second[..., None, :]).flatten(-2)


class LinearMemory(nn.Module):
    """A matrix W [F, E] per head: the faded sum of what its `features` say of each step.

    The memory and its arithmetic are float32 (or float64), under autocast and with narrower weights
    too.
    """

    def __init__(
        self,
        width: int,
        features: RetentionFeatures | AGaLiTeFeatures,
        *,
        has_output: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self.memory_shape: tuple[int, ...] = (
            features.num_heads,
            features.num_features,
            features.num_values,
        )
        self.output = nn.Linear(width, width, bias=False) if has_output else nn.Identity()

    def encode(
        self, segments: Float[Tensor, "B J S D"], live: Bool[Tensor, "B J S"] | None = None
    ) -> tuple[Tensor, ...]:
        """What each segment keeps of keys and values, [.., H, F] and [.., H, E], and adds."""
        step = self.features(segments)
        if live is not None:
            step = Step(*(part * live[..., None, None] for part in step))
        with torch.autocast(segments.device.type, enabled=False):
            fades = [log.flip(2).cumsum(2).flip(2) - log for log in (step[2], step[3])]
            add = torch.einsum(
                "bjshf,bjshe->bjhfe", step.key * fades[0].exp(), step.value * fades[1].exp()
            )
            return step.log_keep_key.sum(2).exp(), step.log_keep_value.sum(2).exp(), add

    def write(self, memory: Tensor, encoded: tuple[Tensor, ...]) -> Tensor:
        """W after one segment."""
        keep_key, keep_value, add = encoded
        return keep_key[..., None] * keep_value[..., None, :] * memory + add

    def write_step(self, memory: Tensor, step: Float[Tensor, "B D"]) -> None:
        """Change W by one step of the recursion."""
        key, value, log_keep_key, log_keep_value = self.features(step)
        memory *= (log_keep_key[..., None] + log_keep_value[..., None, :]).exp()
        memory.addcmul_(key[..., None], value[..., None, :])

    def read(
        self,
        steps: Float[Tensor, "B J C D"],
        memories: Float[Tensor, "B J V *memory"],
        selected: Bool[Tensor, "B J C V"],
    ) -> Float[Tensor, "B J C D"]:
        """W^T q of the selected version, normalised."""
        query = rearrange(self.features.queries(steps), "b j c h f -> b j h c f")
        with torch.autocast(memories.device.type, enabled=False):
            query = query.to(memories.dtype)
            found = self.features.normalise(read_matrix(query, memories, selected))
        found = rearrange(found, "b j h c e -> b j c (h e)")
        out: Tensor = self.output(found.to(steps.dtype))
        return out

    def describe(self, steps: Float[Tensor, "B T D"]) -> Record:
        """Norm of what each step adds and mean retention over the features, [B, T, H]."""
        step = self.features(steps)
        return {
            "memory/strength": step.key.norm(dim=-1) * step.value.norm(dim=-1),
            "memory/retention": step.log_keep_key.exp().mean(-1)
            * step.log_keep_value.exp().mean(-1),
        }
