"""How fast each torso learns to carry something over many segments, and for how long it then can.

python tests/bench/memory_recall.py --task cue --length 256 --systems delta,slots,gru
python tests/bench/memory_recall.py --task pairs --length 512 --systems delta --evaluate 16384

Two tasks, both supervised, whole episodes from an empty memory, the loss at the questions only:

- cue: one of 8 cues at the first step, noise, the question at the last step; chance 0.125.
- pairs: 8 keys, each with one of 8 values, at 8 random steps of the first half in random order; in
  the last 8 steps each key is asked for once; chance 0.125.

Every step also shows 8 features of noise. Width 32, 2 layers, 2 heads, window and segment 16, 16
episodes a batch, Adam. A run is solved when the mean accuracy of its last 10 batches reaches 0.99,
and stops there, or --beyond that many updates later. With --anneal the learning rate falls to 0
over all --updates, and none stops before. One line per system: every seed, and the median processor
time of an update.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtxl_rl.torso import Torso, TorsoConfig, build_torso
from mtxl_rl.torso.gates import GATES
from mtxl_rl.torso.torso_config import SlotsConfig, TokensConfig

WIDTH, BATCH, NUM_CHOICES = 32, 16, 8
NUM_NOISE, NOISE = 8, 0.3
TEST_BATCHES = 4

SLOTS, TOKENS = {"long_term": "slots"}, {"long_term": "tokens"}
SYSTEMS: dict[str, dict] = {
    "mlp": {"kind": "mlp"},
    "gru": {"kind": "gru"},
    "lstm": {"kind": "lstm"},
    "gtrxl": {"long_term": "none"},
    "delta": {},
    "delta-coupled": {"decay": "coupled"},
    "delta-free": {"decay": "free"},
    "linear-fixed": {"long_term": "linear", "decay": "fixed"},
    "linear-free": {"long_term": "linear", "decay": "free"},
    "agalite": {"long_term": "agalite"},
    "slots": SLOTS,
    "slots-brc": SLOTS | {"slots": SlotsConfig(cell="brc")},
    "slots-gru": SLOTS | {"slots": SlotsConfig(cell="gru")},
    "slots-twice": SLOTS | {"slots": SlotsConfig(write_iterations=2)},
    "slots-shared": SLOTS | {"slots": SlotsConfig(is_shared=True)},
    "slots-detached": SLOTS | {"slots": SlotsConfig(detach_inputs=True)},
    "slots-half-life-1": SLOTS | {"slots": SlotsConfig(max_half_life=1.0)},
    "slots-half-life-512": SLOTS | {"slots": SlotsConfig(max_half_life=512.0)},
    "slots-four": SLOTS | {"slots": SlotsConfig(num_slots=4, max_half_life=512.0)},
    "tokens": TOKENS,
    "tokens-control": TOKENS | {"tokens": TokensConfig(separate_control=True)},
    "tokens-bottleneck": TOKENS | {"tokens": TokensConfig(bottleneck=True)},
    **{f"gate-{gate}": {"gate": gate} for gate in GATES},
    "mogrifier": {"mogrifier_rounds": 4},
}


class Batch:
    """Episodes of a task: features [B, T, F], the steps that ask [B, Q], the answers [B, Q]."""

    def __init__(self, task: str, length: int, generator: torch.Generator) -> None:
        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator)

        rows = torch.arange(BATCH)[:, None]
        key, value, query = (torch.zeros(BATCH, length, NUM_CHOICES) for _ in range(3))
        if task == "cue":
            self.answers = draw(NUM_CHOICES, BATCH, 1)
            value[rows, 0, self.answers] = 1
            self.steps = torch.full((BATCH, 1), length - 1)
            query[:, -1] = 1
        else:
            values = draw(NUM_CHOICES, BATCH, NUM_CHOICES)
            half = length // 2
            at = torch.rand(BATCH, half, generator=generator).argsort(1)[:, :NUM_CHOICES]
            key[rows, at, torch.arange(NUM_CHOICES)] = 1
            value[rows, at, values] = 1
            order = torch.rand(BATCH, NUM_CHOICES, generator=generator).argsort(1)
            self.steps = torch.arange(length - NUM_CHOICES, length).expand(BATCH, -1)
            query[rows, self.steps, order] = 1
            self.answers = values.gather(1, order)
        noise = NOISE * torch.randn(BATCH, length, NUM_NOISE, generator=generator)
        self.features = torch.cat([key, value, query, noise], dim=2)


class Learner(nn.Module):
    """A torso between two linear maps."""

    def __init__(self, torso: Torso) -> None:
        super().__init__()
        self.torso = torso
        self.embed = nn.Linear(3 * NUM_CHOICES + NUM_NOISE, WIDTH)
        self.head = nn.Linear(WIDTH, NUM_CHOICES)

    def forward(self, batch: Batch) -> Tensor:
        """Logits at the questions, [B, Q, choices]."""
        x = self.embed(batch.features)
        y, _ = self.torso(
            x, self.torso.initial_state(BATCH), torch.zeros(x.shape[:2], dtype=torch.bool)
        )
        return self.head(y[torch.arange(BATCH)[:, None], batch.steps])


@dataclass
class Result:
    """One run."""

    updates: int | None
    accuracy: float
    milliseconds: float
    generalised: list[float]


def accuracy_of(logits: Tensor, batch: Batch) -> float:
    """The fraction of questions answered."""
    return float((logits.argmax(-1) == batch.answers).float().mean())


def train(system: str, arguments: argparse.Namespace, seed: int) -> Result:
    """One run of a system."""
    torch.manual_seed(seed)
    sizes = {"width": WIDTH, "num_layers": 2, "num_heads": 2, "window_length": 16,
             "segment_length": 16, "num_persistent": 4}  # fmt: skip
    learner = Learner(build_torso(TorsoConfig(**(sizes | SYSTEMS[system]))))
    optimizer = torch.optim.Adam(learner.parameters(), lr=arguments.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    accuracies: list[float] = []
    times: list[float] = []
    solved = None
    for update in range(1, arguments.updates + 1):
        if arguments.anneal:
            left = 1 - (update - 1) / arguments.updates
            optimizer.param_groups[0]["lr"] = arguments.learning_rate * left
        batch = Batch(arguments.task, arguments.length, generator)
        begun = time.process_time()
        logits = learner(batch)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        times.append(time.process_time() - begun)
        accuracies.append(accuracy_of(logits, batch))
        if solved is None and update >= 10 and statistics.mean(accuracies[-10:]) >= 0.99:
            solved = update
        is_over = solved is not None and update >= solved + arguments.beyond
        if is_over and not arguments.anneal:
            break
    with torch.no_grad():
        generalised = [
            statistics.mean(
                accuracy_of(learner(batch), batch)
                for batch in (Batch(arguments.task, length, generator) for _ in range(TEST_BATCHES))
            )
            for length in arguments.evaluate
        ]
    return Result(
        solved,
        statistics.mean(accuracies[-10:]),
        1000 * statistics.median(times),
        generalised,
    )


def state_bytes(system: str) -> int:
    """Bytes of one episode's long-term memory."""
    config = TorsoConfig(width=WIDTH, num_layers=2, num_heads=2, window_length=16,
                         segment_length=16, **SYSTEMS[system])  # fmt: skip
    return build_torso(config).initial_state(1).long_term.nbytes


def main() -> None:
    """Print the table, a line as soon as a system is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("cue", "pairs"), default="cue")
    parser.add_argument("--length", type=int, default=256, help="steps of an episode")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=300, help="updates at most")
    parser.add_argument("--beyond", type=int, default=0, help="updates after it is solved")
    parser.add_argument("--anneal", action="store_true", help="to a learning rate of 0")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--evaluate", type=int, nargs="*", default=[], help="lengths to test at")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    longer = "".join(f" at {length} |" for length in arguments.evaluate)
    print(f"task {arguments.task}, {arguments.length} steps")
    print(f"| system | updates to 0.99 | accuracy | CPU ms per update | bytes |{longer}")
    print("|---" * (5 + len(arguments.evaluate)) + "|")
    for system in arguments.systems.split(","):
        runs = [train(system, arguments, seed) for seed in range(arguments.seeds)]
        each = ", ".join("never" if run.updates is None else str(run.updates) for run in runs)
        accuracy = ", ".join(f"{run.accuracy:.2f}" for run in runs)
        milliseconds = statistics.median(run.milliseconds for run in runs)
        ends = "".join(
            " " + ", ".join(f"{run.generalised[i]:.2f}" for run in runs) + " |"
            for i in range(len(arguments.evaluate))
        )
        columns = [system, each, accuracy, f"{milliseconds:.0f}", str(state_bytes(system))]
        print(f"| {' | '.join(columns)} |{ends}", flush=True)


if __name__ == "__main__":
    main()
