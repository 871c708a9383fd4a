"""The options of a character model's training run."""

import math
from dataclasses import dataclass

from mtxl_rl.envs.names import check_choice
from mtxl_rl.runtime.devices import find_device
from mtxl_rl.torso.torso_config import check_at_least, long_term_names

RECALL = "recall"


@dataclass(kw_only=True, slots=True)
class TrainLMConfig:
    """The options of `mtxl_rl.train_lm`."""

    text: str = RECALL
    """Path of a text file, read as bytes; or recall: a generated text of facts and questions."""
    gap: int = 50
    """Characters between the facts and their questions, for text=recall."""
    num_characters: int = 1_000_000
    """Length of the text, for text=recall."""
    long_term: str = "delta"
    """Long-term memory: delta, slots, linear, agalite, tokens, or none (a Transformer-XL)."""
    dim: int = 64
    """Width, D."""
    depth: int = 2
    """Layers."""
    heads: int = 4
    """Heads."""
    seq_len: int = 16
    """Characters between two writes of the long-term memory."""
    mem_len: int = 16
    """Window: short-term memory in characters."""
    num_mem_kv: int = 4
    """Persistent key/value pairs."""
    batch_size: int = 32
    """Rows, B: parts of the text that are read in parallel."""
    segments: int = 16
    """Segments of seq_len that gradients flow through."""
    updates: int = 1000
    """Optimiser steps."""
    learning_rate: float = 3e-3
    """Adam's step size after a warm-up of 50 updates; a cosine schedule decays it to zero."""
    evaluate_every: int = 50
    """Updates between two evaluations, which use the last tenth of the text."""
    num_processes: int = 1
    """Processes that learn together, each with an equal share of batch_size. torchrun starts them
    on several machines."""
    seed: int = 0
    """Seed of the weights and the recall text."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: cuda if there is a GPU, else cpu."""
    run_dir: str = ""
    """Folder for config, metrics and weights; empty: runs/lm/<date_time>."""
    resume: str = ""
    """The folder of the run to continue. updates=, evaluate_every=, prompt=, num_generated=,
    device= and num_processes= can change."""
    prompt: str = ""
    """Text that the trained model continues; with resume= of a finished run, without any
    training."""
    num_generated: int = 200
    """Characters to generate after the prompt."""

    def __post_init__(self) -> None:
        """Check ranges and names here, so that messages have this command's names."""
        check_at_least(
            self, 1, "gap", "num_characters", "dim", "depth", "heads", "seq_len", "batch_size",
            "segments", "updates", "evaluate_every", "num_processes", "num_generated",
        )  # fmt: skip
        check_at_least(self, 0, "mem_len", "num_mem_kv", "seed")
        if self.text != RECALL:
            for name in ("gap", "num_characters"):
                default = TrainLMConfig.__dataclass_fields__[name].default
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no effect with text={self.text}; remove "
                        f"it, or set text={RECALL}"
                    )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be finite and above 0")
        if self.dim % self.heads:
            legal = [n for n in range(1, self.dim + 1) if self.dim % n == 0]
            raise ValueError(
                f"heads={self.heads} must divide dim={self.dim}; choose heads from {legal}"
            )
        check_choice("long_term", self.long_term, long_term_names())
        find_device(self.device)
        self.check_processes(self.num_processes)

    def check_processes(self, size: int) -> None:
        """Check that the rows divide equally among `size` processes.

        Raises:
            ValueError: they do not.
        """
        if self.batch_size % size:
            legal = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            raise ValueError(
                f"num_processes={size} must divide batch_size={self.batch_size}; choose one of "
                f"{legal}"
            )

    @property
    def length(self) -> int:
        """Characters of each row per update."""
        return self.segments * self.seq_len
