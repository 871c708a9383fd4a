"""Runs that are killed at random moments: continued, they equal those that were not.

python tests/reliability/kills.py --kills 20 --seed 1

A training run, an evaluation or a suite is killed by SIGKILL one to seven times and started again
each time. Half of the kills are at a random moment; the others just before a random file operation
of the command: opening a file to write it, renaming, removing or linking one. After a kill no
process of the command may be left. In the end

- where the environments' state can be saved, the checkpoint (weights, optimiser, environments,
  generators) and all metrics but those of time equal a run's that was not killed, bit for bit;
- where it cannot, episodes restart: two continuations of one folder are equal bit for bit, no row
  of the metrics is missing or doubled, and no row from before a checkpoint has changed;
- an evaluation's file equals the one of an evaluation that was not killed, and its run's folder is
  unchanged; a suite's runs and evaluations equal those of a suite that was not killed.

Linux only: other systems have no /proc to look for processes in. MTXL_RL_RELIABILITY scales the
number of kills.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import yaml
from counts import Counts, Outcome, run_program
from disk import TINY, written_below
from gymnasium import spaces

import mtxl_rl
from mtxl_rl import evaluate, suite, train
from mtxl_rl.envs.backends.process_vector import ProcessVectorEnv
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows

STEPS = 768
"""Of a run: 12 iterations of 64 steps."""
RUN = dict(part.split("=") for part in TINY if not part.startswith("env")) | {
    "total_steps": str(STEPS)
}
MAX_KILLS = 7
SECONDS_TO_END = 60
"""How long processes may live after the command that started them was killed."""
MARK = "MTXL_RL_KILLS_PROGRAM"
"""A variable of the environment that marks all processes of an attempt."""
SUITE = """\
torsos: [mtxl, gru]
seeds: 1
tasks:
  tiny: {{options: [{options}], score: success}}
"""
Job = Callable[[Path], None]


class Kind(NamedTuple):
    """What is killed."""

    job: Job
    """Starts or continues the command in a folder."""
    compared: Callable[[Path], Any]
    """What must be equal in the end."""
    is_exact: bool = True
    """Whether the state of the environments can be saved."""
    weight: int = 3
    """How often the kind is drawn, relative to the others."""


class Numbers(gymnasium.Env[Any, Any]):
    """Random observations and rewards in episodes of random lengths; its state can be saved."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        if seed is not None or not hasattr(self, "key"):
            self.key, self.num_steps = int(seed or 0), 0
        self.left = 1 + self._rng().integers(1, 12).item()
        return self._rng().normal(size=3).astype(np.float32), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """Take a step."""
        self.num_steps += 1
        self.left -= 1
        rng = self._rng()
        observation, reward = rng.normal(size=3).astype(np.float32), rng.random() * int(action)
        return observation, reward, self.left <= 0, False, {}

    def get_state(self) -> dict[str, int]:
        """What the next step depends on."""
        return {"key": self.key, "num_steps": self.num_steps, "left": self.left}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from a state of `get_state`."""
        self.key, self.num_steps, self.left = state["key"], state["num_steps"], state["left"]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng((self.key, self.num_steps))


def start_or_resume(folder: Path, options: dict[str, str]) -> dict[str, str]:
    """The options that continue the run in a folder, or start one where none was saved."""
    if checkpoint.latest(folder) is not None:
        return {"resume": str(folder)}
    shutil.rmtree(folder, ignore_errors=True)
    return RUN | options | {"run_dir": str(folder)}


def training(**options: str) -> Job:
    """Train by the command line."""

    def job(folder: Path) -> None:
        train.main([f"{name}={value}" for name, value in start_or_resume(folder, options).items()])

    return job


def processes(folder: Path) -> None:
    """Train in environments that two worker processes step, from Python."""
    options = start_or_resume(folder, {})
    env = ProcessVectorEnv([Numbers] * 4, num_workers=2)
    try:
        typed = {name: yaml.safe_load(value) for name, value in options.items()}
        mtxl_rl.train(env, typed, verbose=False)
    finally:
        env.close()


def evaluating(folder: Path) -> None:
    """Evaluate the run in the folder `trained`."""
    folder.mkdir(exist_ok=True)
    output = f"output={folder / 'evaluation.json'}"
    evaluate.main(["checkpoint=trained", "episodes=64", "num_envs=4", output])


def suite_job(folder: Path) -> None:
    """Run a suite of two runs, one after the other."""
    suite.main(["suite=tiny.yaml", f"folder={folder}", "jobs=1", "episodes=4"])


def trained(folder: Path) -> dict[str, Any]:
    """A run's last checkpoint, without the options, which name the folder, and its metrics."""
    state = {key: part for key, part in checkpoint.load(folder).items() if key != "description"}
    return {"state": state, "rows": rows_of(folder)}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without those of time."""
    return [
        {key: row[key] for key in row if "second" not in key and key != "charts/SPS"}
        for row in read_rows(folder)
    ]


def evaluated(folder: Path) -> dict[str, Any]:
    """An evaluation's episodes, and the folder of the evaluated run."""
    files = sorted(path for path in Path("trained").rglob("*") if path.is_file())
    return {
        "episodes": json.loads((folder / "evaluation.json").read_text())["episodes"],
        "trained": {str(path): path.read_bytes() for path in files},
    }


def suite_results(folder: Path) -> dict[str, Any]:
    """A suite's runs and evaluations."""
    results: dict[str, Any] = {"report": (folder / "report.md").exists()}
    for torso in ("mtxl", "gru"):
        run = folder / "tiny" / torso / "seed_0"
        episodes = json.loads((run / "evaluation.json").read_text())["episodes"]
        results[torso] = {**trained(run), "episodes": episodes}
    return results


T_MAZE = {"env": "TMaze", "env.corridor_length": "3"}
MAZE = {"env": "MemoryMaze", "env.size": "7x7", "env.textures": "procedural"}
MINIGRID = {"env": "EnvPool", "env.id": "MiniGrid-MemoryS7-v0", "env.num_threads": "1"}
CARTPOLE = {"env": "Gymnasium", "env.id": "CartPole-v1", "+env.kwargs.vectorization_mode": "async"}
EVALUATES = {"eval_every": "64", "eval_episodes": "8", "eval_video": "false"}
KINDS = {
    **{
        f"{name}, {torso}": Kind(training(**env, torso=torso), trained, is_exact=is_exact)
        for name, env, is_exact in (
            ("TMaze", T_MAZE, True),
            ("MemoryMaze", MAZE, True),
            ("EnvPool", MINIGRID, False),
            ("Gymnasium processes", CARTPOLE, False),
        )
        for torso in ("mtxl", "slots", "gru")
    },
    "TMaze that evaluates": Kind(training(**T_MAZE, **EVALUATES), trained),
    "TMaze, 2 processes": Kind(training(**T_MAZE, num_processes="2"), trained, weight=1),
    "ProcessVectorEnv": Kind(processes, trained, weight=1),
    "evaluate": Kind(evaluating, evaluated, weight=6),
    "suite": Kind(suite_job, suite_results, weight=1),
}


class Kill(NamedTuple):
    """When an attempt is killed, unless it ends before."""

    seconds: float | None = None
    """After its start."""
    operation: int | None = None
    """Before this file operation."""


class Ended(NamedTuple):
    """How an attempt ended."""

    code: int
    """The exit code, or minus the signal."""
    output: str
    seconds: float
    num_operations: int
    """File operations below the folder."""
    left: str
    """Which processes outlived it; empty if none."""


def attempt(job: Job, folder: Path, kill: Kill) -> Ended:
    """Run a job in a process of its own."""
    log, counted = Path("log.txt"), multiprocessing.Value("i", 0)
    context = multiprocessing.get_context("fork")  # Importing torch takes seconds.
    begin = time.monotonic()
    process = context.Process(target=_child, args=(job, folder, kill.operation, counted, log))
    process.start()
    process.join(600 if kill.seconds is None else kill.seconds)
    hangs = kill.seconds is None and process.is_alive()
    process.kill()
    process.join()
    seconds = time.monotonic() - begin
    assert process.pid is not None
    assert process.exitcode is not None
    left = "hangs for 600 s" if hangs else wait_for_end(process.pid)
    output = log.read_text() if log.exists() else ""
    return Ended(process.exitcode, output, seconds, counted.value, left)


def _child(job: Job, folder: Path, operation: int | None, counted: Any, log: Path) -> None:  # noqa: ANN401
    os.setsid()
    os.environ[MARK] = str(os.getppid())
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    root = str(folder.absolute())

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if written_below(root, event, arguments) is None:
            return
        counted.value += 1
        if counted.value == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    job(folder)


def processes_left(session: int | None) -> list[int]:
    """Processes of an attempt: of its session, or marked by its environment."""
    mark, numbers = f"{MARK}={os.getpid()}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            is_marked = mark in (path / "environ").read_bytes()
        except OSError:
            continue  # It has ended.
        if state != "Z" and (of_session == session or is_marked):
            numbers.append(int(path.name))
    return numbers


def wait_for_end(session: int) -> str:
    """Which processes are left `SECONDS_TO_END` after their parent was killed; empty if none."""
    deadline = time.monotonic() + SECONDS_TO_END
    while left := processes_left(session):
        if time.monotonic() > deadline:
            for number in left:
                os.kill(number, signal.SIGKILL)
            return f"processes {left} were left"
        time.sleep(0.1)
    return ""


def difference(state: Any, expected: Any, path: str = "") -> str:  # noqa: ANN401
    """Where two trees differ; empty if nowhere."""
    if isinstance(state, torch.Tensor):
        is_equal = isinstance(expected, torch.Tensor) and torch.equal(state, expected)
        return "" if is_equal else f"{path} differs"
    if isinstance(state, dict) and isinstance(expected, dict) and state.keys() == expected.keys():
        parts = (difference(state[key], expected[key], f"{path}/{key}") for key in state)
        return next((part for part in parts if part), "")
    if isinstance(state, list) and isinstance(expected, list) and len(state) == len(expected):
        pairs = enumerate(zip(state, expected, strict=True))
        parts = (difference(left, right, f"{path}/{i}") for i, (left, right) in pairs)
        return next((part for part in parts if part), "")
    return "" if state == expected else f"{path} differs: {str(state)[:200]}, {str(expected)[:200]}"


def saved_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run up to its last checkpoint, which are never lost."""
    newest = checkpoint.latest(folder)
    if newest is None:
        return []
    return [row for row in rows_of(folder) if row["step"] <= checkpoint.step_of(newest)]


def draw_kill(rng: random.Random, whole: Ended) -> Kill:
    """A moment or a file operation in the first two thirds of a job."""
    if rng.random() < 0.5:
        return Kill(seconds=rng.uniform(0, whole.seconds) * 2 / 3)
    return Kill(operation=rng.randint(1, 1 + whole.num_operations * 2 // 3))


def play(kind: Kind, rng: random.Random, whole: Ended, kills: Counts, name: str) -> str:
    """Kill a job several times, and finish it; what is wrong, empty if nothing."""
    folder, rows = Path("run"), list[dict[str, Any]]()
    for _ in range(rng.randint(1, MAX_KILLS)):
        ended = attempt(kind.job, folder, draw_kill(rng, whole))
        if ended.left or ended.code not in (0, -signal.SIGKILL):
            return f"code {ended.code}, {ended.left}\n{ended.output}"
        if ended.code == 0:
            break
        where = "before the first checkpoint"
        if kind.compared is not trained:
            where = "of another command"
        elif checkpoint.latest(folder) is not None:
            where = "after a checkpoint"
        kills.add(name, "", Outcome(where))
        fault = difference(rows, saved_rows(folder)[: len(rows)], "rows before a checkpoint")
        if fault:
            return fault
        rows = saved_rows(folder)
    return finish(kind, folder)


def finish(kind: Kind, folder: Path) -> str:
    """Continue a job to its end, and compare; what is wrong, empty if nothing."""
    other = Path("whole")
    if not kind.is_exact:
        other = Path("copy")
        shutil.rmtree(other, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, other)
    for each in [folder] if kind.is_exact else [folder, other]:
        ended = attempt(kind.job, each, Kill())
        if ended.left or ended.code:
            return f"to the end: code {ended.code}, {ended.left}\n{ended.output}"
    result = kind.compared(folder)
    steps = [row["step"] for row in result.get("rows", [])]
    if steps not in ([], list(range(64, STEPS + 1, 64))):
        return f"rows of the steps {steps}"
    return difference(result, kind.compared(other))


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Kill one job after another."""
    torch.set_num_threads(1)
    options = ", ".join(f"{name}={value}" for name, value in (RUN | T_MAZE).items())
    Path("tiny.yaml").write_text(SUITE.format(options=options))
    make_vector_env(MemoryMazeConfig(textures="procedural"), num_envs=1, seed=0).reset()
    assert attempt(training(**T_MAZE), Path("trained"), Kill()).code == 0
    kills, runs = Counts("kills"), Counts("runs that were killed")
    names = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    wholes, folders = dict[str, Ended](), Path("wholes")
    folders.mkdir()
    for case in itertools.count() if arguments.case is None else [arguments.case]:
        if sum(row.total() for row in kills.rows.values()) >= arguments.kills:
            break
        rng = random.Random(f"{arguments.seed}/{case}/kills")
        # Each kind once, then at random.
        name = [*KINDS][case] if case < len(KINDS) else rng.choice(names)
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("whole", ignore_errors=True)
        if name in wholes:
            shutil.copytree(folders / name, "whole")
        else:
            wholes[name] = attempt(KINDS[name].job, Path("whole"), Kill())
            assert wholes[name].code == 0, wholes[name].output
            shutil.copytree("whole", folders / name)
        fault = play(KINDS[name], rng, wholes[name], kills, name)
        runs.add(name, f"case {case}", Outcome("failed", fault) if fault else Outcome("equal"))
        seconds = wholes[name].seconds
        print(
            f"case {case}: {name} ({seconds:.1f} s): {'failed' if fault else 'equal'}", flush=True
        )
    return [kills, runs]


if __name__ == "__main__":
    run_program(__doc__, {"kills": 200}, run)
