"""The wrapper of the package memory-transformer-xl 0.1.0, with its calls.

A script written for that package runs with its imports changed. `CausalLM` is this library's own
interface.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mtxl_rl.language_model.causal_lm import draw_tokens, evaluating
from mtxl_rl.language_model.model import MemoryTransformerXL, require_tokens
from mtxl_rl.torso import MemoryState

# B rows, T tokens, V size of the vocabulary.


class Return(NamedTuple):
    """The loss of one segment of one part of the batch."""

    loss: Float[Tensor, ""]
    is_last_batch: bool
    """Whether it is the last part of its segment: the moment for an optimiser step."""


def top_k(logits: Float[Tensor, "B V"], thres: float = 0.9) -> Float[Tensor, "B V"]:
    """Keep the (1 - thres) V largest logits, at least one; the others become -inf."""
    count = max(1, int((1 - thres) * logits.shape[-1]))
    least = logits.topk(count).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Float[Tensor, "B V"], thres: float = 0.9) -> Float[Tensor, "B V"]:
    """Keep the most probable tokens up to a sum of 1 - thres, and the one that exceeds it."""
    ordered, index = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, index, before > 1 - thres)
    return logits.masked_fill(dropped, -torch.inf)


class AutoregressiveWrapper(nn.Module):
    """Trains a `MemoryTransformerXL` in segments and generates with it.

    Args:
        net: The language model.
        ignore_index: The target to leave out of the loss.
        pad_value: Fills the ends of sequences of unequal length. As in the package, it counts as a
            target unless it equals `ignore_index`.
    """

    def __init__(
        self, net: MemoryTransformerXL, ignore_index: int = -100, pad_value: int = 0
    ) -> None:
        super().__init__()
        self.net = net
        self.ignore_index = ignore_index
        self.pad_value = pad_value
        self.seq_len = net.seq_len

    def forward(
        self,
        x: Int[Tensor, "B T"] | Sequence[Int[Tensor, " _"]],
        max_batch_size: int | None = None,
        return_loss: bool = False,
        truncate_every: int | None = None,
        mask: Bool[Tensor, "B _"] | None = None,
        **kwargs: Any,  # noqa: ANN401 - the arguments of the model's forward
    ) -> Iterator[Return] | tuple[Float[Tensor, "B T V"], MemoryState]:
        """Return the losses of all segments and batch parts, or the model's own output.

        Args:
            x: Tokens, or sequences of unequal length, which are padded.
            max_batch_size: Rows of a batch part; None: all rows.
            return_loss: Whether to return an iterator over losses.
            truncate_every: Stop gradients of the long-term memory after every so many segments.
                They also stop where parameters have changed since the segment before, as after an
                optimiser step: torch cannot differentiate through the old ones.
            mask: False for padding; of the length of `x`, or one shorter.
            kwargs: Other arguments of the model.

        Raises:
            ValueError: The tokens or the mask do not fit.
        """
        tokens = x if isinstance(x, Tensor) else self._pad(x)
        if not return_loss:
            output: tuple[Tensor, MemoryState] = self.net(tokens, mask=mask, **kwargs)
            return output
        require_tokens(tokens, least=2)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if not isinstance(x, Tensor):  # A sequence's own end is padded, in both.
            inputs, targets = self._pad([row[:-1] for row in x]), self._pad([row[1:] for row in x])
        if mask is not None and mask.shape[1] == tokens.shape[1]:
            mask = mask[:, :-1]
        return self._losses(inputs, targets, mask, max_batch_size, truncate_every)

    def _pad(self, sequences: Sequence[Tensor]) -> Tensor:
        return pad_sequence(list(sequences), batch_first=True, padding_value=self.pad_value)

    def _losses(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        max_batch_size: int | None,
        truncate_every: int | None,
    ) -> Iterator[Return]:
        size = max_batch_size or len(inputs)
        parts = [slice(start, start + size) for start in range(0, len(inputs), size)]
        memories: list[MemoryState | None] = [None] * len(parts)
        versions = [0] * len(parts)
        for segment in range(math.ceil(inputs.shape[1] / self.seq_len)):
            columns = slice(segment * self.seq_len, (segment + 1) * self.seq_len)
            is_cut = truncate_every is not None and (segment + 1) % truncate_every == 0
            for part, rows in enumerate(parts):
                previous = memories[part]
                if previous is not None and versions[part] != self._parameter_version():
                    previous = previous.detach()
                versions[part] = self._parameter_version()
                logits, memories[part] = self.net(
                    inputs[rows, columns],
                    memories=previous,
                    mask=None if mask is None else mask[rows, columns],
                    detach_lmem=is_cut,
                )
                loss = nn.functional.cross_entropy(
                    logits.transpose(1, 2), targets[rows, columns], ignore_index=self.ignore_index
                )
                yield Return(loss, part == len(parts) - 1)

    def _parameter_version(self) -> int:
        """A number that grows with every change of a parameter in place."""
        return sum(parameter._version for parameter in self.net.parameters())

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Int[Tensor, "*B T"],
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: Callable[..., Tensor] = top_k,
        filter_thres: float = 0.9,
        mask: Bool[Tensor, "*B T"] | None = None,
    ) -> Int[Tensor, "*B L"]:
        """Return at most `seq_len` new tokens, with or without a batch axis as `start_tokens`.

        Args:
            start_tokens: The start of the text.
            seq_len: Number of tokens to draw.
            eos_token: Stop when every row has drawn it in the same step.
            temperature: Divides the logits after filtering.
            filter_logits_fn: Takes logits [B, V] and `thres`; sets those never to draw to -inf.
            filter_thres: Its `thres`.
            mask: False for padding in `start_tokens`.
        """
        is_single = start_tokens.ndim == 1
        tokens = start_tokens[None] if is_single else start_tokens
        if mask is not None and is_single:
            mask = mask[None]

        def draw(logits: Tensor) -> Tensor:
            filtered = filter_logits_fn(logits, thres=filter_thres)
            return torch.multinomial((filtered / temperature).softmax(dim=-1), 1)[:, 0]

        drawn: list[Tensor] = []
        with evaluating(self.net):
            for token, _ in draw_tokens(self.net, tokens, draw, mask=mask):
                drawn.append(token)
                is_ended = eos_token is not None and bool((token == eos_token).all())
                if len(drawn) == seq_len or is_ended:
                    break
        generated = torch.stack(drawn, dim=1)
        return generated[0] if is_single else generated
