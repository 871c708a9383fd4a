"""The Memory Transformer-XL as a language model: tokens in, logits and memories out."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso import MemoryState, MemoryTransformer, TorsoConfig
from mtxl_rl.torso.state import describe
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig

# B rows, T tokens, V size of the vocabulary, D width.


def _slots_of_2020(num_slots: int, *, write_iterations: int) -> SlotsConfig:
    return SlotsConfig(
        num_slots=num_slots, write_iterations=write_iterations, cell="nbrc", is_shared=True
    )


class MemoryTransformerXL(nn.Module):
    """A language model with the call of the package `memory-transformer-xl` 0.1.0.

    Its core is the torso. These arguments set options of the torso:

    - seq_len: tokens between two writes of the long-term memory; calls can have any length.
    - mem_len: the window is max(mem_len, seq_len) and slides: a token sees that many before it.
    - lmem_len, mem_write_iters: slots, and rounds of attention and cell per write.
    - memory_layers: the layers, from 1, that write and read the slots; default all.
    - num_mem_kv: persistent key/value pairs per head.
    - gru_gated_residual: nBRC gates, or plain residuals.
    - mogrify_gru: five mogrifier rounds before each gate.
    - long_term: slots as in 2020, or another kind of `TorsoConfig.long_term`.

    docs/differences.md lists the differences from 2020.

    Raises:
        ValueError: an argument is illegal; the message names the torso's option.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        seq_len: int,
        depth: int,
        emb_dim: int | None = None,
        memory_layers: Sequence[int] | None = None,
        mem_len: int | None = None,
        lmem_len: int | None = None,
        heads: int = 8,
        gru_gated_residual: bool = True,
        mogrify_gru: bool = False,
        attn_dropout: float = 0.0,
        ff_glu: bool = False,
        ff_dropout: float = 0.0,
        attn_layer_dropout: float = 0.0,
        one_kv_head: bool = False,
        num_mem_kv: int = 0,
        mem_write_iters: int = 2,
        *,
        long_term: str = "slots",
        position: str = "sinusoidal",
    ) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens} must be 1 or more")
        window_length = max(mem_len or 0, seq_len)
        slots = SlotsConfig()
        if long_term == "slots":
            num_slots = window_length if lmem_len is None else lmem_len
            slots = _slots_of_2020(num_slots, write_iterations=mem_write_iters)
        self.config = TorsoConfig(
            width=dim,
            num_layers=depth,
            num_heads=heads,
            feedforward_multiple=4,
            window_length=window_length,
            segment_length=seq_len,
            num_persistent=num_mem_kv,
            position=position,
            gate="nbrc" if gru_gated_residual else "residual",
            mogrifier_rounds=5 if mogrify_gru else 0,
            long_term=long_term,
            decay="fixed" if long_term == "linear" else "none",
            memory_layers=[] if long_term == "none" else sorted(memory_layers or []),
            slots=slots,
            sublayers=SublayersConfig(
                activation="gelu",
                glu=ff_glu,
                output_relu=False,
                one_kv_head=one_kv_head,
                attention_dropout=attn_dropout,
                output_dropout=attn_layer_dropout,
                feedforward_dropout=ff_dropout,
            ),
        )
        emb_dim = dim if emb_dim is None else emb_dim
        same = emb_dim == dim
        self.token_emb = nn.Embedding(num_tokens, emb_dim)
        self.to_model_dim = nn.Identity() if same else nn.Linear(emb_dim, dim)
        self.torso = MemoryTransformer(self.config)
        self.to_logits = nn.Sequential(
            nn.Identity() if same else nn.Linear(dim, emb_dim), nn.Linear(emb_dim, num_tokens)
        )
        self.seq_len = seq_len

    def initial_memories(self, batch_size: int) -> MemoryState:
        """The memories at the start of texts: all zeros."""
        return self.torso.initial_state(batch_size)

    def forward(
        self,
        x: Int[Tensor, "B T"],
        memories: MemoryState | None = None,
        mask: Bool[Tensor, "B T"] | None = None,
        detach_lmem: bool = False,
    ) -> tuple[Float[Tensor, "B T V"], MemoryState]:
        """The logits of each next token, and the memories after these tokens.

        Args:
            x: tokens, which continue the texts of `memories`.
            memories: what an earlier call returned; None at the start of texts.
            mask: False for padding, which is neither attended to nor remembered; its logits are 0.
            detach_lmem: stop gradients at the long-term memory in `memories`.

        Raises:
            ValueError: tokens are not integers [B, T] with T >= 1, or the mask or the memories have
                another shape.
        """
        require_tokens(x, least=1)
        if memories is None:
            memories = self.initial_memories(len(x))
        if detach_lmem:
            memories = memories._replace(long_term=memories.long_term.detach())
        if mask is None:
            return self._forward(x, memories)
        require_mask(mask, x)
        return self._masked(x, memories, mask.bool())

    def _forward(self, x: Tensor, memories: MemoryState) -> tuple[Tensor, MemoryState]:
        is_first = torch.zeros_like(x, dtype=torch.bool)  # Texts continue from `memories`.
        features, memories = self.torso(self.to_model_dim(self.token_emb(x)), memories, is_first)
        return self.to_logits(features), memories

    def _masked(self, x: Tensor, memories: MemoryState, mask: Tensor) -> tuple[Tensor, MemoryState]:
        """Process rows in groups with equal counts of tokens, leaving padding out."""
        counts = mask.sum(dim=1)
        num_tokens, like = self.token_emb.num_embeddings, self.token_emb.weight
        # Part of the graph even if all is padding, so that a loss of padding has gradients: 0.
        logits = like.new_zeros(*x.shape, num_tokens) + 0 * like.sum()
        order = torch.argsort(~mask, dim=1, stable=True)  # tokens first, in their order
        groups, index = [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            index.append(rows)
            state = memories.rows(rows)
            if count:
                kept = order[rows, :count]
                group_logits, state = self._forward(x[rows].gather(1, kept), state)
                logits[rows[:, None], kept] = group_logits.to(logits.dtype)
            groups.append(state)
        back = torch.cat(index).argsort()
        after = MemoryState(*(torch.cat(parts)[back] for parts in zip(*groups, strict=True)))
        return logits, after


def require_tokens(tokens: Tensor, *, least: int) -> None:
    """Raise ValueError if `tokens` is not a tensor of integers [B, T]: B >= 1, T >= `least`."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2:
        raise ValueError(
            f"tokens is {describe(tokens)}, but must be a tensor of integers [B, T]; text[None] "
            "adds the batch axis to a single text"
        )
    if len(tokens) < 1 or tokens.shape[1] < least:
        raise ValueError(
            f"tokens has the shape {list(tokens.shape)}, but there must be a row, and each row "
            f"needs {least} or more"
        )


def require_known(tokens: Tensor, *, num_tokens: int) -> None:
    """Raise ValueError if a token is not one of 0 .. num_tokens - 1; waits for the device."""
    unknown = tokens[(tokens < 0) | (tokens >= num_tokens)]
    if len(unknown):
        raise ValueError(
            f"token {unknown[0].item()} is not one of the model's, 0 .. {num_tokens - 1}"
        )


def require_mask(mask: Tensor, tokens: Tensor) -> None:
    """Raise ValueError if `mask` is not a tensor of the tokens' shape."""
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        raise ValueError(
            f"mask is {describe(mask)}, but must be a tensor of the tokens' shape, "
            f"{list(tokens.shape)}: True for tokens, False for padding"
        )
