"""Speed of this library and of other libraries, each in a process with its own interpreter.

python tests/bench/peers.py --python rllib=PATH/bin/python --python skrl=PATH/bin/python

Every system trains by its own PPO and its own training loop, in this library's environments: TMaze
has vectors, MemoryMaze has pictures. All have the same environments, steps per rollout, epochs,
minibatches and threads; the transformers have the same width, window and layers, and the LSTMs have
that width and --lstm-layers. Image encoders are each system's own; where it has none, the user's
part is a Nature CNN. No system stops an epoch early.

The systems take their turns one after another while the others wait; medians of the turns are
shown, after one turn that is not counted. The columns:

    steps/s      environment steps of all environments per second of a whole iteration
    learner      steps x epochs per second between the rollout's last step and the next first one
    acting       milliseconds from N observations in NumPy to N actions, recurrent state included
    memory       the process's largest resident memory, with its Python and its libraries

The table `network` has no environments: networks alone, for libraries that have no PPO. They learn
from random inputs of the same shapes, with one optimiser step per minibatch.

With `--tasks TMaze --until 0.98` the systems do not take turns. Each trains alone until the mean
score of its last 100 episodes (success, or the return where a task reports no success) reaches
that, or for `--limit` seconds. This library has the task's preset; TorchRL, which has no defaults,
gets the preset's settings too, and skrl some of them; the others have their own defaults. To all of
them but this library a reset row is a step of the next episode. The columns are then environment
steps and seconds, from the first step of training on, and the highest score.

A system that is not installed, fails, or cannot do a measure is listed with the reason. An
interpreter needs this library's dependencies and the peer: `pip install -e . PEER`. A peer whose
requirements contradict ours can be installed with `pip install --no-deps`. For CleanRL, download
cleanrl/ppo_trxl/ppo_trxl.py from its repository vwxyzjn/cleanrl and pass --cleanrl-file; its
interpreter needs tyro.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

BENCH = Path(__file__).resolve().parent


class Entry(NamedTuple):
    """How a system is started."""

    module: str
    """Of the folder `peer_systems`; the name in --python, too."""
    torso: str = "lstm"
    """The torso of this library's systems; for the others, a transformer or an LSTM."""
    compiled: bool = False


SYSTEMS = {
    "mtxl": Entry("ours", "mtxl"),
    "mtxl-compiled": Entry("ours", "mtxl", compiled=True),
    "lstm": Entry("ours", "lstm"),
    "cleanrl": Entry("cleanrl", "trxl"),
    "sb3": Entry("sb3"),
    "torchrl": Entry("torchrl"),
    "rsl_rl": Entry("rsl_rl"),
    "skrl": Entry("skrl"),
    "rllib": Entry("rllib"),
    "pufferlib": Entry("pufferlib"),
    "sample_factory": Entry("sample_factory"),
}
NETWORKS = {
    "mtxl-network": Entry("bare_torso", "mtxl"),
    "gtrxl-network": Entry("bare_torso", "gtrxl"),
    "lstm-network": Entry("bare_torso", "lstm"),
    "cortex-xl": Entry("cortex", "gtrxl"),
    "cortex-agalite": Entry("cortex", "gtrxl"),
    "cortex-mlstm": Entry("cortex", "gtrxl"),
}
"""Networks alone: the systems of the table `network`."""
ROWS = (1, 64)
"""Numbers of rows in which acting is measured."""


class Child:
    """A system in its process; `failure` is the reason why it no longer answers."""

    def __init__(self, name: str, task: str, arguments: argparse.Namespace, folder: Path) -> None:
        self.name, self.failure, self.timeout = name, "", arguments.timeout
        self.iterations: list[dict[str, Any]] = []
        self.acting: dict[int, list[float]] = {rows: [] for rows in ROWS}
        entry = (SYSTEMS | NETWORKS)[name]
        layers = arguments.lstm_layers if entry.torso == "lstm" else arguments.layers
        options = vars(arguments) | {
            "task": "TMaze" if task == "network" else task, "system": name, "layers": layers,
            "torso": entry.torso, "compile": entry.compiled, "device": "cpu",
            "precision": "float32",
        }  # fmt: skip
        paths = [str(BENCH.parents[1]), str(BENCH)]
        threads = str(arguments.threads)
        self.log = folder / f"{task}_{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [arguments.python.get(entry.module, sys.executable), "-m",
                 f"peer_systems.{entry.module}", json.dumps(options)],
                cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads,
                                  "MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
            )  # fmt: skip
        self.description = self.receive()

    def receive(self) -> dict[str, Any]:
        """The process's next answer; empty where it failed."""
        answers: IO[str] = self.process.stdout  # type: ignore[assignment]
        timer = threading.Timer(self.timeout, self.process.kill)
        timer.start()
        line = answers.readline()
        is_late = not timer.is_alive()
        timer.cancel()
        message = json.loads(line) if line else {}
        if not line:
            reason = f"no answer in {self.timeout} s" if is_late else "the process ended"
            lines = self.log.read_text(errors="replace").strip().splitlines()
            self.failure = f"{reason}: {lines[-1] if lines else 'it wrote no message'}"
        elif "error" in message:
            self.failure = message["error"].splitlines()[0]
        return message if not self.failure else {}

    def ask(self, word: str) -> dict[str, Any]:
        """Send a word and wait for the answer."""
        if self.failure:
            return {}
        try:
            assert self.process.stdin is not None
            print(word, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # The answer explains why.
        return self.receive()

    def act(self) -> None:
        """One turn of acting, in every number of rows."""
        for rows, seconds in self.acting.items():
            if answer := self.ask(f"act {rows}"):
                seconds.append(answer["seconds"])

    def iterate(self) -> None:
        """One turn of training."""
        if answer := self.ask("iterate"):
            self.iterations.append(answer)

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def row_of_failure(self, *, num_columns: int) -> str:
        """The row of a table that explains why the system is not measured."""
        return f"| {self.name} | not measured: {self.failure} |" + " |" * (num_columns - 2)

    def row(self, arguments: argparse.Namespace) -> str:
        """The system's row of the table, of the counted turns."""
        counted = self.iterations[1:]
        if self.failure or not counted:
            return self.row_of_failure(num_columns=8)

        def rate(seconds: str, factor: int) -> str:
            """Median steps per second; empty where nothing stepped."""
            if counted[0][seconds] is None:
                return ""
            rates = [turn["steps"] * arguments.envs * factor / turn[seconds] for turn in counted]
            return f"{statistics.median(rates):,.0f}"

        acting = [f"{1000 * statistics.median(self.acting[rows]):.2f}" for rows in ROWS]
        columns = [
            self.name, self.description["title"], f"{self.description['parameters']:,}",
            rate("total", 1), rate("learn", arguments.epochs), *acting,
            f"{counted[-1]['memory']:,.0f}",
        ]  # fmt: skip
        return "| " + " | ".join(columns) + " |"


def take_turns(task: str, children: list[Child], turns: int) -> None:
    """Measure acting, then training; the first turn of training is not counted."""
    for turn in range(turns):
        for child in children:
            child.act()
        print(f"{task}: acting, turn {turn + 1}", file=sys.stderr, flush=True)
    for turn in range(turns + 1):
        for child in children:
            child.iterate()
        print(f"{task}: training, turn {turn}", file=sys.stderr, flush=True)


def describe_sizes(arguments: argparse.Namespace) -> str:
    """What all systems have in common."""
    return (
        f"{arguments.envs} environments x {arguments.steps} steps, width {arguments.width}, "
        f"window {arguments.window}, {arguments.layers} layers of transformers and "
        f"{arguments.lstm_layers} of LSTMs, {arguments.epochs} epochs, "
        f"{arguments.minibatches} minibatches, {arguments.threads} threads"
    )


def train_until(task: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print how long each system trains until it reaches the score."""
    print(f"\n{task}: {describe_sizes(arguments)}, until the score is {arguments.until:g}, at most "
          f"{arguments.limit:g} s")  # fmt: skip
    print("| system | version and network | parameters | steps | seconds | highest score |")
    print("|---" * 6 + "|")
    for name in (name for name in arguments.systems if name in SYSTEMS):
        child = Child(name, task, arguments, folder)
        seconds, steps, highest = 0.0, 0, -math.inf
        try:
            while highest < arguments.until and seconds < arguments.limit:
                child.iterate()
                if child.failure:
                    break
                turn = child.iterations[-1]
                seconds += turn["total"]
                steps += turn["steps"] * arguments.envs
                if turn["score"] is not None:
                    highest = max(highest, turn["score"])
        finally:
            child.end()
        if child.failure:
            print(child.row_of_failure(num_columns=6), flush=True)
            continue
        reached = f"{steps:,} | {seconds:,.0f}"
        if highest < arguments.until:
            reached = f"not in {steps:,} | not in {seconds:,.0f}"
        print(f"| {name} | {child.description['title']} | {child.description['parameters']:,} | "
              f"{reached} | {highest:.2f} |", flush=True)  # fmt: skip


def measure(task: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print a task's table."""
    table = NETWORKS if task == "network" else SYSTEMS
    children: list[Child] = []
    try:
        for name in (name for name in arguments.systems if name in table):
            print(f"{task}: starting {name}", file=sys.stderr, flush=True)
            children.append(Child(name, task, arguments, folder))
        take_turns(task, children, arguments.turns)
    finally:
        for child in children:
            child.end()
    print(f"\n{task}: {describe_sizes(arguments)}, medians of {arguments.turns} turns")
    print("| system | version and network | parameters | steps/s | learner samples/s | "
          "acting, 1 row (ms) | acting, 64 rows (ms) | memory (MB) |")  # fmt: skip
    print("|---" * 8 + "|")
    for child in children:
        print(child.row(arguments), flush=True)
        if threads := {turn["threads"] for turn in child.iterations} - {arguments.threads}:
            print(f"{child.name} used {threads} threads", file=sys.stderr)


def interpreters(items: list[str]) -> dict[str, str]:
    """The interpreter of each module, from MODULE=PATH; paths are made absolute."""
    modules = {entry.module for entry in (SYSTEMS | NETWORKS).values()}
    paths: dict[str, str] = {}
    for item in items:
        module, _, path = item.partition("=")
        if module not in modules or not path:
            raise ValueError(
                f"--python {item} was given; write MODULE=PATH, e.g. "
                f"rllib=venvs/rllib/bin/python, with one of {', '.join(sorted(modules))}"
            )
        paths[module] = os.path.abspath(path)  # noqa: PTH100 - resolve() would leave the venv.
    return paths


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="TMaze,MemoryMaze,network")
    parser.add_argument("--systems", default=",".join(SYSTEMS | NETWORKS))
    parser.add_argument("--python", action="append", default=[], metavar="MODULE=PATH")
    parser.add_argument("--cleanrl-file", default="", help="path of CleanRL's ppo_trxl.py")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2, help="of transformers")
    parser.add_argument("--lstm-layers", type=int, default=1)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--segment", type=int, default=32)
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64, help="of a rollout and of a sequence")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn of acting")
    parser.add_argument("--until", type=float, help="train until this score")
    parser.add_argument("--limit", type=float, default=600, help="seconds, with --until")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one answer")
    parser.add_argument("--logs", default="", help="folder for the systems' messages")
    arguments = parser.parse_args()
    arguments.systems = arguments.systems.split(",")
    if unknown := set(arguments.systems) - set(SYSTEMS | NETWORKS):
        known = ", ".join(SYSTEMS | NETWORKS)
        parser.error(f"--systems {', '.join(unknown)} is unknown; choose from {known}")
    try:
        arguments.python = interpreters(arguments.python)
    except ValueError as error:
        parser.error(str(error))
    if arguments.cleanrl_file:
        arguments.cleanrl_file = str(Path(arguments.cleanrl_file).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.logs or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tasks = arguments.tasks.split(",")
        if arguments.until is not None:
            tasks = [task for task in tasks if task != "network"]  # It has no score.
        for task in tasks:
            (measure if arguments.until is None else train_until)(task, arguments, folder)


if __name__ == "__main__":
    main()
