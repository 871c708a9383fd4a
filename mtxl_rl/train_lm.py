"""Train a character model: `python -m mtxl_rl.train_lm text=FILE`, or on the recall text."""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Bool, Int
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtxl_rl.agents.world import World, concatenate_rows, select_rows
from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.config import find_device, from_document, read_yaml
from mtxl_rl.language_model.causal_lm import CausalLM
from mtxl_rl.language_model.model import MemoryTransformerXL
from mtxl_rl.runtime.distributed import (
    check_devices,
    joined_world,
    launch,
    local_device,
    world_size,
)
from mtxl_rl.torso import MemoryState, save_torso
from mtxl_rl.torso.torso_config import DECAYS, check_at_least
from mtxl_rl.tracking.checkpoint import read_archive
from mtxl_rl.tracking.cli import say, stop_requests
from mtxl_rl.tracking.files import atomic_write, run_lock
from mtxl_rl.tracking.metrics import MetricsLogger
from mtxl_rl.tracking.run_record import outcome, run_record

RECALL = "recall"
CHECKPOINT = "checkpoint.pt"

# B rows, each a part of the text read in order; T characters; 256 tokens, which are bytes.


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
    """Folder of a run to continue. updates=, evaluate_every=, prompt=, num_generated=, device= and
    num_processes= can change."""
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
        if self.long_term not in DECAYS:
            raise ValueError(
                f"long_term={self.long_term} is unknown; choose one of {', '.join(DECAYS)}"
            )
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


def is_answer(tokens: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Which characters answer a question: those two after its mark."""
    return nn.functional.pad(tokens[:, :-2] == ord("?"), (2, 0))


@torch.no_grad()
def evaluate(
    model: MemoryTransformerXL, rows: Int[Tensor, "B T"], *, length: int, world: World
) -> dict[str, float]:
    """Bits per character over the rows, with memories carried over; and the answers' accuracy.

    Each process passes its share of the rows; the metrics are those of all rows.
    """
    model.eval()
    memories, nats, count, right, asked = None, 0.0, 0, 0, 0
    for start in range(0, rows.shape[1] - 1, length):
        inputs = rows[:, start : start + length + 1]
        logits, memories = model(inputs[:, :-1], memories)
        targets = inputs[:, 1:]
        nats += float(nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum"))  # fmt: skip
        count += targets.numel()
        answers = is_answer(inputs)[:, 1:]
        asked += int(answers.sum())
        right += int(((logits.argmax(-1) == targets) & answers).sum())
    model.train()
    sums = torch.tensor([nats, count, right, asked], dtype=torch.float64, device=rows.device)
    all_nats, all_targets, all_right, all_asked = world.sum(sums).tolist()
    metrics = {"lm/bits_per_character": all_nats / all_targets / math.log(2)}
    return metrics | ({"lm/answer_accuracy": all_right / all_asked} if all_asked else {})


def run(config: TrainLMConfig) -> Path:
    """Train, evaluate, and save the weights, also when interrupted; return the run's folder.

    Raises:
        ValueError: the text is too short, or an option is not legal.
        OSError: the text cannot be read, or the folder cannot be written.
    """
    return _run(config)[0]


def _run(config: TrainLMConfig) -> tuple[Path, int]:
    """Do what `run` does; return the folder and the number of the signal that stopped it, or 0."""
    torch.manual_seed(config.seed)
    device = local_device(find_device(config.device))
    with joined_world(device, options=asdict(config)) as world:
        config.check_processes(world.size)
        run_dir = Path(world.gather(str(_run_dir(config)))[0])
        with run_lock(run_dir) if world.rank == 0 else nullcontext():
            if world.rank == 0 and not config.resume and (run_dir / "config.yaml").exists():
                raise ValueError(f"run_dir={run_dir} already holds a run; choose another run_dir")
            own = world.rows(config.batch_size // world.size)
            text = _text(config)
            train, held_out = (rows[own].to(device) for rows in rows_of(text, config))
            model = MemoryTransformerXL(
                num_tokens=256, dim=config.dim, heads=config.heads, depth=config.depth,
                seq_len=config.seq_len, mem_len=config.mem_len, num_mem_kv=config.num_mem_kv,
                lmem_len=16, long_term=config.long_term,
            ).to(device)  # fmt: skip
            size = sum(parameter.numel() for parameter in model.parameters())
            say(f"{run_dir}: {device}, {len(text):,} bytes of text, {size:,} parameters")
            with run_record(run_dir, rank=world.rank, world_size=world.size) as record:
                signal_number = _train(model, train, held_out, config, run_dir, world)
                record["outcome"] = outcome(signal_number)
            if world.rank == 0:
                with atomic_write(run_dir / "model.safetensors") as temporary:
                    save_torso(model.torso, temporary, within=model)
        say(f"saved {run_dir / 'model.safetensors'}")
        if config.prompt and not signal_number:
            say(generate(model, config.prompt, length=config.num_generated))
    return run_dir, signal_number


def generate(model: MemoryTransformerXL, prompt: str, *, length: int) -> str:
    """The prompt and the model's continuation; bytes that are not UTF-8 are replaced."""
    device = next(model.parameters()).device
    start = torch.tensor([list(prompt.encode())], device=device)
    tokens, _ = CausalLM(model).generate(start, length)
    return prompt + bytes(tokens[0].tolist()).decode(errors="replace")


def _run_dir(config: TrainLMConfig) -> Path:
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(config.run_dir or Path("runs") / "lm" / now)


def _text(config: TrainLMConfig) -> bytes:
    if config.text == RECALL:
        return recall_text(config.num_characters, gap=config.gap, seed=config.seed)
    if not Path(config.text).exists() or Path(config.text).is_dir():
        raise FileNotFoundError(
            f"text={config.text} is not a file; give a text file, or text={RECALL}"
        )
    return Path(config.text).read_bytes()


class Reading(NamedTuple):
    """How far the rows are read and learned from."""

    update: int = 0
    """Optimiser steps so far."""
    position: int = 0
    """Characters of each row that were read since the text last began."""
    memories: MemoryState | None = None
    """The memories after them."""


def _train(
    model: MemoryTransformerXL,
    rows: Tensor,
    held_out: Tensor,
    config: TrainLMConfig,
    run_dir: Path,
    world: World,
) -> int:
    """Train for `updates`; return the number of the signal that stopped it earlier, or 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    learner = CausalLM(model)
    is_main = world.rank == 0
    reading = _load(model, optimizer, config, rows.device, world) if config.resume else Reading()
    start, first = time.perf_counter(), reading.update
    with (
        MetricsLogger(run_dir) if is_main else nullcontext() as logger,
        stop_requests(announce=is_main) as stop,
    ):
        if logger is not None:
            logger.truncate_after(first)
        while reading.update < config.updates:
            (is_stopping,) = world.any(bool(stop), device=rows.device)
            if is_stopping:
                _save(run_dir, model, optimizer, reading, world)
                say(
                    f"stopped after update {reading.update}/{config.updates}; continue with: "
                    f"python -m mtxl_rl.train_lm resume={run_dir}"
                )
                # Without a signal of its own, this process stops because another one received one.
                return (stop or [signal.SIGTERM])[0]
            reading, loss = _update(learner, optimizer, rows, reading, config, world)
            if reading.update == first + 1 and is_main:
                # Only now: a failed start leaves the folder free for the next one.
                _save_config(config, run_dir)
            if reading.update % config.evaluate_every == 0 or reading.update == config.updates:
                metrics = evaluate(model, held_out, length=config.length, world=world)
                num_read = (reading.update - first) * config.batch_size * config.length
                speed = num_read / (time.perf_counter() - start)
                metrics |= {"losses/train_loss": loss.item(), "time/characters_per_second": speed}
                _log(metrics, logger, update=reading.update, num_updates=config.updates)
                _save(run_dir, model, optimizer, reading, world)
    return 0


def _update(
    learner: CausalLM,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    reading: Reading,
    config: TrainLMConfig,
    world: World,
) -> tuple[Reading, Tensor]:
    """Learn from the next part of the rows; return where reading continues, and the loss."""
    if reading.position + config.length + 1 > rows.shape[1]:
        reading = Reading(update=reading.update)  # The text begins again.
    position = reading.position + config.length
    loss, memories = learner(rows[:, reading.position : position + 1], reading.memories)
    optimizer.zero_grad(set_to_none=True)
    (loss / world.size).backward()
    parameters = list(learner.parameters())
    (loss,) = world.sum_gradients(parameters, [loss.detach() / world.size])
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.param_groups[0]["lr"] = _learning_rate(config, reading.update)
    optimizer.step()
    return Reading(reading.update + 1, position, memories.detach()), loss


def _learning_rate(config: TrainLMConfig, update: int) -> float:
    warm_up, decay = (update + 1) / 50, 0.5 * (1 + math.cos(math.pi * update / config.updates))
    return config.learning_rate * min(warm_up, decay)


def _log(
    metrics: dict[str, float], logger: MetricsLogger | None, *, update: int, num_updates: int
) -> None:
    """Print an evaluation's metrics, and log them on rank 0, which has a logger."""
    if logger is not None:
        logger.log(metrics, step=update)
    cells = " | ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    say(f"update {update}/{num_updates} | {cells}")


def _save_config(config: TrainLMConfig, run_dir: Path) -> None:
    saved = replace(config, resume="", prompt="")
    with atomic_write(run_dir / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.structured(saved), temporary)


def _save(
    run_dir: Path,
    model: MemoryTransformerXL,
    optimizer: torch.optim.Optimizer,
    reading: Reading,
    world: World,
) -> None:
    """Write everything that the next update depends on, on rank 0."""
    memories = None if reading.memories is None else dict(reading.memories._asdict())
    memories = concatenate_rows(world.gather(memories))
    if world.rank > 0:
        return
    state = {
        "update": reading.update, "position": reading.position, "memories": memories,
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    with atomic_write(run_dir / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def _load(
    model: MemoryTransformerXL,
    optimizer: torch.optim.Optimizer,
    config: TrainLMConfig,
    device: torch.device,
    world: World,
) -> Reading:
    """Restore a state of `_save`.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: it is damaged, or does not fit the run's options.
    """
    path = Path(config.resume) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(
            f"resume={config.resume} has no {CHECKPOINT}: it was stopped before its first update; "
            "train again in another folder"
        )
    state = read_archive(path, map_location=device)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        memories = state["memories"]
        if memories is not None:
            rows = world.rows(config.batch_size // world.size)
            memories = MemoryState(**select_rows(memories, rows, num_rows=config.batch_size))
        reading = Reading(int(state["update"]), int(state["position"]), memories)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit {config.resume}/config.yaml "
            f"({' '.join(f'{type(error).__name__}: {error}'.split())}); restore both files"
        ) from error
    if reading.update >= config.updates and not config.prompt:
        say(f"nothing is left to train after update {reading.update}; give a larger updates=")
    return reading


USAGE = """\
python -m mtxl_rl.train_lm [text=FILE] [option=value ...]     train a character model
python -m mtxl_rl.train_lm resume=RUN_DIR [updates=N]         continue a run
python -m mtxl_rl.train_lm resume=RUN_DIR prompt=TEXT         generate with a trained model
"""
_CHANGEABLE = ("resume", "updates", "evaluate_every", "prompt", "num_generated", "device",
               "num_processes")  # fmt: skip


def _describe(overrides: list[str]) -> Command:
    """The command of a new run; with resume=, one whose defaults are the saved run's values."""
    options, source = options_of(TrainLMConfig), value_of(overrides, "resume")
    if not source:
        return Command(usage=USAGE, options=options, base=TrainLMConfig)
    path = Path(source) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"resume={source} is not a run of mtxl_rl.train_lm: {path} does not exist; give the "
            "folder of a run"
        )
    names = {option.name for option in options}
    for name in (part.partition("=")[0] for part in overrides):
        if name in names and name not in _CHANGEABLE:
            raise ValueError(f"Cannot change {name} when resuming. Remove it, or start a new run.")
    saved = from_document(TrainLMConfig, read_yaml(path))
    return Command(usage=USAGE, options=options, base=replace(saved, run_dir=source))


def _run_command(config: TrainLMConfig) -> None:
    if world_size() == 1 and config.num_processes > 1:
        check_devices(config.num_processes, find_device(config.device))
        overrides = HydraConfig.get().overrides.task
        exit_code = launch(
            ["-m", "mtxl_rl.train_lm", *overrides], num_processes=config.num_processes
        )
        if exit_code:
            raise SystemExit(exit_code)
        return
    _, signal_number = _run(config)
    if signal_number:
        raise SystemExit(128 + signal_number)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=_run_command)


if __name__ == "__main__":
    main()
