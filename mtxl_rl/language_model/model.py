"""The Memory Transformer-XL as a language model: tokens in, logits and memories out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.torso import MemoryState, MemoryTransformer, TorsoConfig
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig

# B rows, T tokens, V size of the vocabulary, D width.


class MemoryTransformerXL(nn.Module):
    """A language model with the call of the package `memory-transformer-xl` 0.1.0.

    Its core is the torso; what the arguments mean there:

    | argument | here |
    |---|---|
    | seq_len | tokens between two writes of the long-term memory; calls may have any length |
    | mem_len | the window is max(mem_len, seq_len) and slides: a token sees that many before it |
    | lmem_len, mem_write_iters | slots, and rounds of attention and cell per write |
    | memory_layers | the layers, from 1, that write and read the slots; default all |
    | num_mem_kv | persistent key/value pairs per head |
    | gru_gated_residual | nBRC gates, or plain residuals |
    | mogrify_gru | five mogrifier rounds before each gate |
    | long_term | slots as in 2020, or another kind of `TorsoConfig.long_term` |

    What differs from 2020, and why, is in ARCHITECTURE.md.

    Raises:
        ValueError: an argument is not legal; the message names the torso's option.
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
        window_length = max(seq_len if mem_len is None else mem_len, seq_len)
        slots = SlotsConfig()
        if long_term == "slots":
            slots = SlotsConfig(
                num_slots=window_length if lmem_len is None else lmem_len,
                write_iterations=mem_write_iters,
                cell="nbrc",
                is_shared=True,
            )
        has_memory = long_term != "none"
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
            memory_layers=sorted(memory_layers or []) if has_memory else [],
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
        """The memories of texts that are about to begin: all zeros."""
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
            x: tokens; texts go on where `memories` stand.
            memories: what an earlier call returned; None where texts begin.
            mask: False for padding, which is neither attended to nor remembered; its logits are 0.
            detach_lmem: cut the gradient into the long-term memory that was passed in.

        Raises:
            ValueError: tokens are no integers [B, T] with T >= 1, or mask or memories do not fit.
        """
        _require_tokens(x, least=1)
        if memories is None:
            memories = self.initial_memories(len(x))
        if detach_lmem:
            memories = memories._replace(long_term=memories.long_term.detach())
        if mask is None:
            return self._forward(x, memories)
        _require_mask(mask, x)
        return self._masked(x, memories, mask.bool())

    def _forward(self, x: Tensor, memories: MemoryState) -> tuple[Tensor, MemoryState]:
        goes_on = torch.zeros_like(x, dtype=torch.bool)
        features, memories = self.torso(self.to_model_dim(self.token_emb(x)), memories, goes_on)
        return self.to_logits(features), memories

    def _masked(self, x: Tensor, memories: MemoryState, mask: Tensor) -> tuple[Tensor, MemoryState]:
        """Rows in groups of as many tokens: padding is left out, so nothing can remember it."""
        counts = mask.sum(dim=1)
        num_tokens, like = self.token_emb.num_embeddings, self.token_emb.weight
        # Of the graph even where all is padding, so that a loss of such a part has gradients: 0.
        logits = like.new_zeros(*x.shape, num_tokens) + 0 * like.sum()
        order = torch.argsort(~mask, dim=1, stable=True)  # the tokens first, in their order
        groups, index = [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            index.append(rows)
            state = memories.rows(rows)
            if count:
                kept = order[rows, :count]
                said, state = self._forward(x[rows].gather(1, kept), state)
                logits[rows[:, None], kept] = said.to(logits.dtype)
            groups.append(state)
        back = torch.cat(index).argsort()
        after = MemoryState(*(torch.cat(parts)[back] for parts in zip(*groups, strict=True)))
        return logits, after


class AutoregressiveWrapper(nn.Module):
    """Trains a `MemoryTransformerXL` to predict each next token, and generates with it."""

    def __init__(self, net: MemoryTransformerXL, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.net = net
        self.ignore_index = ignore_index
        """A target that counts in no loss."""

    def forward(
        self,
        tokens: Int[Tensor, "B T1"],
        memories: MemoryState | None = None,
        mask: Bool[Tensor, "B T1"] | None = None,
    ) -> tuple[Float[Tensor, ""], MemoryState]:
        """The mean loss in nats of predicting tokens[:, 1:], and the memories after tokens[:, :-1].

        Where no target counts, as in the last part of texts that are padded, the loss is 0.
        Gradients flow through all segments; for texts too long for that see `segments`.

        Raises:
            ValueError: there are fewer than two tokens a row, or mask or memories do not fit.
        """
        _require_tokens(tokens, least=2)
        if mask is not None:
            _require_mask(mask, tokens)
            mask = mask.bool()
        inside = None if mask is None else mask[:, :-1]
        logits, memories = self.net(tokens[:, :-1], memories, inside)
        targets = tokens[:, 1:]
        if mask is not None:
            targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), self.ignore_index)
        total = nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=self.ignore_index,
            reduction="sum",
        )
        return total / (targets != self.ignore_index).sum().clamp(min=1), memories

    def segments(
        self,
        tokens: Int[Tensor, "B T1"],
        memories: MemoryState | None = None,
        *,
        truncate_every: int = 1,
    ) -> Iterator[tuple[Float[Tensor, ""], MemoryState]]:
        """The loss of one part after another, the memories carried on.

        A part is `truncate_every` segments of seq_len tokens; its gradients stop at its start. So
        each part's loss can be followed by a backward pass and a step of the optimiser.

        Raises:
            ValueError: `truncate_every` is below 1, or tokens or memories do not fit.
        """
        if truncate_every < 1:
            raise ValueError(f"truncate_every={truncate_every} must be 1 or more segments")
        length = truncate_every * self.net.seq_len
        for start in range(0, tokens.shape[1] - 1, length):
            loss, memories = self(tokens[:, start : start + length + 1], memories)
            memories = memories.detach()
            yield loss, memories

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Int[Tensor, "B T0"],
        length: int,
        *,
        memories: MemoryState | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "B T"], MemoryState]:
        """Go on from `start_tokens`, at least one, by at most `length` tokens.

        Each token is projected once and attends to a ring of keys, so a token costs the same
        however long the text is.

        Args:
            start_tokens: what the text begins with, or goes on with after `memories`.
            length: tokens to draw.
            memories: what was read before.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: draw among the k most probable tokens only.
            top_p: draw among the fewest tokens whose probabilities sum to p or more.
            eos_token: stop when every row has drawn it; a row's later tokens repeat it.
            generator: where the random numbers come from.

        Returns:
            The drawn tokens, and the memories after everything but the last of them: those that
            training on the same tokens has there.

        Raises:
            ValueError: an argument is not legal; one sentence says which.
        """
        num_tokens = self.net.token_emb.num_embeddings
        if length < 1:
            raise ValueError(f"length={length} must be 1 or more tokens to draw")
        if eos_token is not None and not 0 <= eos_token < num_tokens:
            raise ValueError(
                f"eos_token={eos_token} must be a token, 0 .. {num_tokens - 1}, or None"
            )
        with _evaluating(self.net):
            logits, state = self.net(start_tokens, memories)
            acting = self.net.torso.begin(state, num_steps=self.net.seq_len)
            goes_on = torch.zeros(len(start_tokens), dtype=torch.bool, device=start_tokens.device)
            ended, drawn, last = goes_on.clone(), [], logits[:, -1]
            for i in range(length):
                token = sample(
                    last, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
                )
                if eos_token is not None:
                    token = token.masked_fill(ended, eos_token)
                    ended = ended | (token == eos_token)
                drawn.append(token)
                if i + 1 == length or (eos_token is not None and bool(ended.all())):
                    break
                x = self.net.to_model_dim(self.net.token_emb(token))
                last = self.net.to_logits(self.net.torso.act(x, acting, goes_on))
            return torch.stack(drawn, dim=1), acting.state()


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Inside, without dropout; then every module is in the mode that it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # Parents come first, and a child's own mode is the last.
            module.train(mode)


def _require_tokens(tokens: Tensor, *, least: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2:
        raise ValueError(
            f"{_told(tokens)} was given, but tokens must be a tensor of integers of shape [B, T]; "
            "text[None] makes one of a single text"
        )
    if tokens.shape[1] < least:
        raise ValueError(
            f"tokens of shape {list(tokens.shape)} were given, but {least} or more a row are needed"
        )


def _require_mask(mask: Tensor, tokens: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        raise ValueError(
            f"as a mask {_told(mask)} was given, but it must have the tokens' shape, "
            f"{list(tokens.shape)}: True where there is a token"
        )


def _told(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of {given.dtype} of shape {list(given.shape)}"
    return f"a {type(given).__name__}"


def sample(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " B"]:
    """Draw a token per row; see `AutoregressiveWrapper.generate`.

    Raises:
        ValueError: temperature < 0, top_k < 1, or top_p outside 0 .. 1.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature={temperature} must be 0 or more, top_k={top_k} 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        ordered, index = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before >= top_p)
        probabilities = probabilities.masked_fill(dropped, 0.0)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
