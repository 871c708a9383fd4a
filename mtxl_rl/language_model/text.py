"""The text that a character model trains on: a file, or generated facts and questions.

B rows, each a part of the text read in order; T characters; 256 tokens, which are bytes.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mtxl_rl.language_model.train_config import RECALL, TrainLMConfig


def recall_text(num_characters: int, *, gap: int, seed: int) -> bytes:
    """Facts, a gap of dots, and a question about each of the facts, over and over.

    `a3;b7;c1;d7;......?c1;?a3;?d7;?b7;`: only the questions' digits depend on the facts before
    the gap; names, digits and the order of the questions are drawn anew each time.
    """
    rng = np.random.default_rng(seed)
    parts: list[str] = []
    length = 0
    while length < num_characters:
        names = rng.choice(list("abcdefgh"), 4, replace=False)
        facts = [
            f"{name}{digit};" for name, digit in zip(names, rng.integers(0, 10, 4), strict=True)
        ]
        part = "".join([*facts, "." * gap, *(f"?{fact}" for fact in rng.permutation(facts))])
        parts.append(part)
        length += len(part)
    return "".join(parts).encode()[:num_characters]


def is_answer(tokens: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Which characters answer a question: those two after its mark."""
    return nn.functional.pad(tokens[:, :-2] == ord("?"), (2, 0))


def read_text(config: TrainLMConfig) -> bytes:
    """A run's text.

    Raises:
        OSError: the file cannot be read.
    """
    if config.text == RECALL:
        return recall_text(config.num_characters, gap=config.gap, seed=config.seed)
    if not Path(config.text).exists() or Path(config.text).is_dir():
        raise FileNotFoundError(
            f"text={config.text} is not a file; give a text file, or text={RECALL}"
        )
    return Path(config.text).read_bytes()


def rows_of(text: bytes, config: TrainLMConfig) -> tuple[Int[Tensor, "B T1"], Int[Tensor, "B T2"]]:
    """The text as rows for training, and its last tenth as rows for evaluation.

    Raises:
        ValueError: the text is too short.
    """
    tokens = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
    cut = len(tokens) * 9 // 10
    rows = []
    for part, name in ((tokens[:cut], "the first nine tenths"), (tokens[cut:], "the last tenth")):
        length = len(part) // config.batch_size
        if length <= config.length:
            raise ValueError(
                f"the text has {len(text):,} bytes, so {name} make batch_size={config.batch_size} "
                f"rows of {length:,}; each must be longer than segments={config.segments} x "
                f"seq_len={config.seq_len} = {config.length}: lower one of the three"
            )
        rows.append(part[: length * config.batch_size].view(config.batch_size, length))
    return rows[0], rows[1]
