"""Training of a `MemoryTransformerXL` on next tokens, and generation of text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtxl_rl.language_model.model import (
    MemoryTransformerXL,
    require_known,
    require_mask,
    require_tokens,
)
from mtxl_rl.torso import Cache, MemoryState

# B rows, T tokens, V size of the vocabulary.


class CausalLM(nn.Module):
    """Trains a `MemoryTransformerXL` to predict each next token, and generates with it."""

    def __init__(self, net: MemoryTransformerXL, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.net = net
        self.ignore_index = ignore_index
        """The target to leave out of the loss."""

    def forward(
        self,
        tokens: Int[Tensor, "B T1"],
        memories: MemoryState | None = None,
        mask: Bool[Tensor, "B T1"] | None = None,
    ) -> tuple[Float[Tensor, ""], MemoryState]:
        """The mean loss in nats of predicting tokens[:, 1:], and the memories after tokens[:, :-1].

        Without any target, as in a part that is all padding, the loss is 0. Gradients flow through
        all segments; use `segments` for texts that are too long for that.

        Raises:
            ValueError: a row has fewer than two tokens, or the mask or the memories have another
                shape.
        """
        require_tokens(tokens, least=2)
        if mask is not None:
            require_mask(mask, tokens)
            mask = mask.bool()
        inside = None if mask is None else mask[:, :-1]
        logits, memories = self.net(tokens[:, :-1], memories, inside)
        targets = tokens[:, 1:]
        if mask is not None:
            targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), self.ignore_index)
        # In float32 at least: float64 stays.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1),
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
        """Yield the loss of each part and the memories after it.

        A part is `truncate_every` segments of seq_len tokens. Gradients stop at its start, so a
        backward pass and an optimiser step can follow each loss.

        Raises:
            ValueError: `truncate_every` is below 1, or the tokens or memories have another shape.
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
        """Continue `start_tokens`, at least one, by at most `length` tokens.

        Each token is projected once and attends to a ring of keys, so that the cost of a token does
        not depend on the length of the text.

        Args:
            start_tokens: the start of the text, or its continuation after `memories`.
            length: tokens to draw.
            memories: those after the text so far.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: draw from the k most probable tokens only.
            top_p: draw from the fewest tokens whose probabilities sum to p or more.
            eos_token: stop when every row has drawn it; a row repeats it from then on.
            generator: draws the random numbers.

        Returns:
            The drawn tokens, and the memories after all of them except the last.

        Raises:
            ValueError: an argument is illegal.
        """
        num_tokens = self.net.token_emb.num_embeddings
        if length < 1:
            raise ValueError(f"length={length} must be 1 or more tokens to draw")
        if eos_token is not None and not 0 <= eos_token < num_tokens:
            raise ValueError(
                f"eos_token={eos_token} must be a token, 0 .. {num_tokens - 1}, or None"
            )
        is_ended = torch.zeros(len(start_tokens), dtype=torch.bool, device=start_tokens.device)

        def draw(logits: Tensor) -> Tensor:
            token = sample(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
            )
            return token if eos_token is None else token.masked_fill(is_ended, eos_token)

        tokens: list[Tensor] = []
        with evaluating(self.net):
            for token, cache in draw_tokens(self.net, start_tokens, draw, memories=memories):
                tokens.append(token)
                if eos_token is not None:
                    is_ended |= token == eos_token
                if len(tokens) == length or (eos_token is not None and bool(is_ended.all())):
                    return torch.stack(tokens, dim=1), cache.state()
        raise AssertionError("draw_tokens has no end")


def draw_tokens(
    net: MemoryTransformerXL,
    start_tokens: Int[Tensor, "B T0"],
    draw: Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]],
    *,
    memories: MemoryState | None = None,
    mask: Bool[Tensor, "B T0"] | None = None,
) -> Iterator[tuple[Int[Tensor, " B"], Cache]]:
    """Yield, without end, the next token of each row and the cache before that token.

    Args:
        net: The language model.
        start_tokens: The start of the text, or its continuation after `memories`.
        draw: Draws a token per row from the logits of the next one.
        memories: Those after the text so far.
        mask: False for padding in `start_tokens`.
    """
    require_tokens(start_tokens, least=1)
    require_known(start_tokens, num_tokens=net.token_emb.num_embeddings)
    logits, state = net(start_tokens, memories, mask)
    cache = net.torso.prefill(state, num_steps=net.seq_len)
    is_first = torch.zeros(len(start_tokens), dtype=torch.bool, device=start_tokens.device)
    last = logits[:, -1]
    while True:
        token = draw(last)
        yield token, cache
        x = net.to_model_dim(net.token_emb(token))
        last = net.to_logits(net.torso.decode_step(x, cache, is_first))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Disable dropout inside, and restore every module's mode afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # Parents come first, so that each child's mode is set last.
            module.train(mode)


def sample(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " B"]:
    """Draw a token per row; see `CausalLM.generate`.

    Raises:
        ValueError: temperature < 0, top_k < 1, or top_p outside 0 .. 1.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature={temperature} must be 0 or more, top_k={top_k} 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be in (0, 1]")
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
