"""A character model's training run from top to bottom.

B rows, each a part of the text read in order; T characters.
"""

import math
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mtxl_rl.agents.world import World
from mtxl_rl.language_model.causal_lm import CausalLM
from mtxl_rl.language_model.model import MemoryTransformerXL
from mtxl_rl.language_model.saved_model import (
    Reading,
    load_checkpoint,
    save_checkpoint,
    save_config,
)
from mtxl_rl.language_model.text import is_answer, read_text, rows_of
from mtxl_rl.language_model.train_config import TrainLMConfig
from mtxl_rl.runtime.devices import find_device, local_device
from mtxl_rl.runtime.distributed import joined_world
from mtxl_rl.torso import save_torso
from mtxl_rl.tracking.cli import print_line, stop_requests
from mtxl_rl.tracking.files import atomic_write, run_lock
from mtxl_rl.tracking.metrics import MetricsLogger
from mtxl_rl.tracking.run_record import outcome, run_record


def run_until_signal(config: TrainLMConfig) -> int:
    """Train, evaluate, and save the weights; return the signal's number that stopped it, or 0.

    Raises:
        ValueError: the text is too short, or an option is not legal.
        OSError: the text cannot be read, or the folder cannot be written.
    """
    torch.manual_seed(config.seed)
    device = local_device(find_device(config.device))
    with joined_world(device, options=asdict(config)) as world:
        config.check_processes(world.size)
        run_dir = Path(world.gather(str(_run_dir(config)))[0])
        with run_lock(run_dir) if world.rank == 0 else nullcontext():
            if world.rank == 0 and not config.resume and (run_dir / "config.yaml").exists():
                raise ValueError(f"run_dir={run_dir} already holds a run; choose another run_dir")
            local_rows = world.rows(config.batch_size // world.size)
            text = read_text(config)
            train, held_out = (rows[local_rows].to(device) for rows in rows_of(text, config))
            model = MemoryTransformerXL(
                num_tokens=256, dim=config.dim, heads=config.heads, depth=config.depth,
                seq_len=config.seq_len, mem_len=config.mem_len, num_mem_kv=config.num_mem_kv,
                lmem_len=16, long_term=config.long_term,
            ).to(device)  # fmt: skip
            size = sum(parameter.numel() for parameter in model.parameters())
            print_line(f"{run_dir}: {device}, {len(text):,} bytes of text, {size:,} parameters")
            with run_record(run_dir, rank=world.rank, world_size=world.size) as record:
                signal_number = _train(model, train, held_out, config, run_dir, world)
                record["outcome"] = outcome(signal_number)
            if world.rank == 0:
                with atomic_write(run_dir / "model.safetensors") as temporary:
                    save_torso(model.torso, temporary, within=model)
        print_line(f"saved {run_dir / 'model.safetensors'}")
        if config.prompt and not signal_number:
            print_line(generate(model, config.prompt, length=config.num_generated))
    return signal_number


def _run_dir(config: TrainLMConfig) -> Path:
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(config.run_dir or Path("runs") / "lm" / now)


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
    reading = Reading()
    if config.resume:
        reading = load_checkpoint(model, optimizer, config, rows.device, world)
        if reading.update >= config.updates and not config.prompt:
            print_line(
                f"nothing is left to train after update {reading.update}; give a larger updates="
            )
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
                save_checkpoint(run_dir, model, optimizer, reading, world)
                _report_stop(reading, config, run_dir)
                # Without a signal of its own, this process stops because another one received one.
                return (stop or [signal.SIGTERM])[0]
            reading, loss = _update(learner, optimizer, rows, reading, config, world)
            if reading.update == first + 1 and is_main:
                # Only now: a failed start leaves the folder free for the next one.
                save_config(config, run_dir)
            if reading.update % config.evaluate_every == 0 or reading.update == config.updates:
                metrics = evaluate(model, held_out, length=config.length, world=world)
                metrics["losses/train_loss"] = loss.item()
                num_read = (reading.update - first) * config.batch_size * config.length
                metrics["time/characters_per_second"] = num_read / (time.perf_counter() - start)
                _log(metrics, logger, update=reading.update, num_updates=config.updates)
                save_checkpoint(run_dir, model, optimizer, reading, world)
    return 0


def _report_stop(reading: Reading, config: TrainLMConfig, run_dir: Path) -> None:
    print_line(
        f"stopped after update {reading.update}/{config.updates}; continue with: "
        f"python -m mtxl_rl.train_lm resume={run_dir}"
    )


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
    print_line(f"update {update}/{num_updates} | {cells}")


@torch.no_grad()
def evaluate(
    model: MemoryTransformerXL, rows: Int[Tensor, "B T"], *, length: int, world: World
) -> dict[str, float]:
    """Bits per character over the rows, with memories carried over; and the answers' accuracy.

    Each process passes its share of the rows; the metrics are those of all rows.
    """
    model.eval()
    memories, nats, count, right, num_answers = None, 0.0, 0, 0, 0
    for start in range(0, rows.shape[1] - 1, length):
        inputs = rows[:, start : start + length + 1]
        logits, memories = model(inputs[:, :-1], memories)
        targets = inputs[:, 1:]
        nats += float(nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum"))  # fmt: skip
        count += targets.numel()
        answers = is_answer(inputs)[:, 1:]
        num_answers += int(answers.sum())
        right += int(((logits.argmax(-1) == targets) & answers).sum())
    model.train()
    sums = torch.tensor([nats, count, right, num_answers], dtype=torch.float64, device=rows.device)
    all_nats, all_targets, all_right, all_answers = world.sum(sums).tolist()
    metrics = {"lm/bits_per_character": all_nats / all_targets / math.log(2)}
    return metrics | ({"lm/answer_accuracy": all_right / all_answers} if all_answers else {})


def generate(model: MemoryTransformerXL, prompt: str, *, length: int) -> str:
    """The prompt and the model's continuation; bytes that are not UTF-8 are replaced."""
    device = next(model.parameters()).device
    start = torch.tensor([list(prompt.encode())], device=device)
    tokens, _ = CausalLM(model).generate(start, length)
    return prompt + bytes(tokens[0].tolist()).decode(errors="replace")
