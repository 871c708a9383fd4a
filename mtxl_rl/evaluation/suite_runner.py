"""A suite: tasks x torsos x seeds, each trained and evaluated in its own process.

The folder holds the suite's state: running the same command again skips finished runs and continues
stopped ones.

    FOLDER/<task>/<torso>/seed_<n>/    a run, as mtxl_rl.train makes it, with log.txt
                       .../evaluation.json   one list of episodes per setting of the memory
                       .../transfer_<i>.json   the same agent under other environment options
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from time import sleep

from omegaconf import OmegaConf
from rich.live import Live
from rich.table import Table

from mtxl_rl.command import choices, value_of
from mtxl_rl.compose import compose_config
from mtxl_rl.config_files import from_document
from mtxl_rl.envs.names import check_choice
from mtxl_rl.torso import count_parameters
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import PARENT, console, print_line, stop_requests


@dataclass(kw_only=True, slots=True)
class Task:
    """One task of a suite."""

    options: list[str]
    """Overrides of `mtxl_rl.train`."""
    score: str = "return"
    """The score: return or success, the mean over episodes."""
    worst: float = 0.0
    """Score of the best agent without memory: normalised score 0."""
    best: float = 1.0
    """The highest possible: normalised score 1."""
    transfer: list[str] = field(default_factory=list)
    """Environment options under which the trained agents are evaluated too, one per setting."""

    def normalised(self, score: float) -> float:
        """`score` with worst at 0 and best at 1."""
        return (score - self.worst) / (self.best - self.worst)


@dataclass(kw_only=True, slots=True)
class SuiteFile:
    """The content of a YAML file in configs/suite, or of one like them."""

    tasks: dict[str, Task]
    """Tasks by name, one or more."""
    options: list[str] = field(default_factory=list)
    """These stand in front of every task's own."""
    torsos: list[str] = field(default_factory=list)
    """Torsos to compare, where the command line names none."""
    seeds: int = 0
    """Runs per task and torso, likewise."""

    def __post_init__(self) -> None:
        """Check that there is something to do."""
        if not self.tasks:
            raise ValueError("tasks is empty")
        _check_torsos(self.torsos)
        check_at_least(self, 0, "seeds")


@dataclass(kw_only=True, slots=True)
class SuiteConfig:
    """The options of `mtxl_rl.suite`."""

    suite: str = ""
    """Name of a file in configs/suite, or path of a YAML file of the same form."""
    torsos: list[str] = field(default_factory=list)
    """Torsos to compare, as in torsos=mtxl,gtrxl; empty: those of the suite."""
    seeds: int = 0
    """Runs per task and torso, with seeds 0 .. seeds - 1; 0: the suite's number."""
    episodes: int = 100
    """Episodes of each evaluation."""
    jobs: int = 0
    """Number of parallel processes; 0: one for each core."""
    folder: str = ""
    """Folder for the runs and the report; empty: results/<suite>."""

    def __post_init__(self) -> None:
        """Check ranges and names."""
        if not self.suite:
            raise ValueError(
                f"suite= is missing; choose one of {', '.join(choices('suite'))}, or give a YAML "
                "file"
            )
        check_at_least(self, 0, "seeds", "jobs")
        check_at_least(self, 1, "episodes")
        _check_torsos(self.torsos)


def _check_torsos(torsos: Sequence[str]) -> None:
    for torso in torsos:
        check_choice("torsos", torso, choices("torso"), hint=", as in torsos=mtxl,gtrxl")


@dataclass(kw_only=True, slots=True)
class Suite:
    """A suite with the choices of its file and of the command line."""

    name: str
    tasks: dict[str, Task]
    torsos: list[str]
    seeds: int
    episodes: int
    jobs: int
    folder: Path
    total_steps: dict[str, int] = field(default_factory=dict)
    """Steps of each task's runs."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Parameters of each task's torsos: the default torso's, which the other torsos approach."""

    @classmethod
    def load(cls, config: SuiteConfig) -> "Suite":
        """Read the suite's YAML file, which has the values that the command line does not set.

        Raises:
            ValueError: there is no such suite, or one of its entries is not legal.
        """
        path = _path_of(config.suite)
        file = _read(path)
        torsos, seeds = config.torsos or file.torsos, config.seeds or file.seeds
        for name, value, example in (("torsos", torsos, "mtxl,gtrxl"), ("seeds", seeds, "3")):
            if not value:
                raise ValueError(f"{path} has no {name}; add them, or give {name}={example}")
        suite = cls(
            name=path.stem,
            tasks={
                name: replace(task, options=[*file.options, *task.options])
                for name, task in file.tasks.items()
            },
            torsos=torsos,
            seeds=seeds,
            episodes=config.episodes,
            jobs=config.jobs or os.cpu_count() or 1,
            folder=Path(config.folder or Path("results") / path.stem),
        )
        for name, task in suite.tasks.items():
            try:
                config_of_task = compose_config(task.options)
            except ValueError as error:
                raise ValueError(f"{path}, task {name}: {error}") from error
            suite.total_steps[name] = config_of_task.total_steps
            suite.parameters[name] = count_parameters(config_of_task.torso)
        return suite

    def runs(self) -> list["SuiteRun"]:
        """All runs, ordered by seed, so that early results compare all torsos."""
        return [
            SuiteRun(self, task, torso, seed)
            for seed in range(self.seeds)
            for task in self.tasks
            for torso in self.torsos
        ]


def _path_of(suite: str) -> Path:
    if Path(suite).suffix in (".yaml", ".yml"):
        return Path(suite)
    check_choice("suite", suite, choices("suite"), hint=", or give a YAML file")
    return Path(str(resources.files("mtxl_rl.configs") / "suite" / f"{suite}.yaml"))


def _read(path: Path) -> SuiteFile:
    try:
        return from_document(SuiteFile, OmegaConf.load(path))
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; a suite has tasks, and each task has options, as in tasks: "
            "{short: {options: [env=TMaze, env.corridor_length=5]}}"
        ) from error


@dataclass(slots=True, eq=False)
class SuiteRun:
    """One run of a suite, and the commands that are left to run for it."""

    suite: Suite
    task: str
    torso: str
    seed: int

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.suite.folder / self.task / self.torso / f"seed_{self.seed}"

    @property
    def evaluation(self) -> Path:
        """The file of the run's evaluation."""
        return self.folder / "evaluation.json"

    def transfer(self, index: int) -> Path:
        """The file of the run's evaluation under one of the task's transfer settings."""
        return self.folder / f"transfer_{index}.json"

    def next_command(self) -> list[str] | None:
        """The module and arguments of the next command; None when nothing is left to do."""
        task = self.suite.tasks[self.task]
        if self.progress() < 1:
            return ["mtxl_rl.train", *self._training()]
        evaluate = ["mtxl_rl.evaluate", f"checkpoint={self.folder}"]
        episodes = self.suite.episodes
        if self._episodes_in(self.evaluation) < episodes:
            return [*evaluate, f"episodes={episodes}", f"output={self.evaluation}"]
        for i, setting in enumerate(task.transfer):
            options = setting.split()
            if value_of(options, "episodes") is None:
                options.append(f"episodes={episodes}")
            if self._episodes_in(self.transfer(i)) < int(value_of(options, "episodes") or 0):
                return [*evaluate, "memory=on", *options, f"output={self.transfer(i)}"]
        return None

    def _episodes_in(self, path: Path) -> int:
        """Episodes of each setting in an evaluation file; 0 if it is missing or outdated."""
        saved = checkpoint.latest(self.folder)
        if saved is None or not path.exists():
            return 0
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["step"] < checkpoint.step_of(saved):
            return 0
        return min(len(episodes) for episodes in document["episodes"].values())

    def progress(self) -> float:
        """The fraction of the training steps that are done."""
        saved = checkpoint.latest(self.folder)
        total = self.suite.total_steps[self.task]
        return 0.0 if saved is None else min(checkpoint.step_of(saved) / total, 1.0)

    def _training(self) -> list[str]:
        options = self.suite.tasks[self.task].options
        if checkpoint.latest(self.folder) is not None:
            # The suite's total_steps may have been raised since the run began.
            return [f"resume={self.folder}", f"total_steps={self.suite.total_steps[self.task]}"]
        if (self.folder / "config.yaml").exists():
            shutil.rmtree(self.folder)  # Killed before its first checkpoint: start again.
        return [
            *options,
            f"torso={self.torso}",
            f"torso.num_parameters={self.suite.parameters[self.task]}",
            f"seed={self.seed}",
            f"run_dir={self.folder}",
            # The suite runs several trainings at a time: each takes one process.
            *(["num_processes=1"] if self.suite.jobs > 1 else []),
        ]


Processes = dict[SuiteRun, "Popen[bytes]"]


def run_suite(suite: Suite) -> list[str]:
    """Run the commands that are left of a suite, `jobs` processes at a time.

    Returns:
        One sentence for each run that failed.

    Raises:
        KeyboardInterrupt: a signal stopped it, after all active runs saved their state. The
            arguments are the signal's number, and a sentence about the unfinished runs.
    """
    waiting, active, failed = suite.runs(), Processes(), list[str]()
    num_stopped, has_killed = 0, False
    total, num_signals, num_reported = len(waiting), 0, 0
    with (
        stop_requests(collect_all=True) as stop,
        Live(console=console, refresh_per_second=1) as live,
    ):
        while (waiting and not stop) or active:
            while waiting and len(active) < suite.jobs and not stop:
                _start(waiting.pop(0), active)
            _reap(active, failed, is_continuing=not stop)
            if len(stop) > num_signals:
                is_second = num_signals > 0 and signal.SIGINT in stop[num_signals:]
                num_stopped, num_signals = max(num_stopped, len(active)), len(stop)
                has_killed = has_killed or is_second
                for process in active.values():
                    if is_second:
                        process.kill()
                    else:
                        process.terminate()
            done = total - len(waiting) - len(active) - len(failed)
            live.update(_table(active, title=f"{done} of {total} runs done, {len(failed)} failed"))
            # Without a terminal, rich prints the table only at the end.
            if num_reported < done < total and not console.is_terminal:
                print_line(f"{done} of {total} runs done")
            num_reported = done
            sleep(0.5)
    console.print()
    if stop:
        how = "killed" if has_killed else "stopped and saved"
        raise KeyboardInterrupt(
            stop[0], f"unfinished runs: {num_stopped} {how}, {len(waiting)} not started"
        )
    return failed


def _reap(active: Processes, failed: list[str], *, is_continuing: bool) -> None:
    """Remove the processes that ended from `active`, and start the next command of their runs."""
    for run, process in list(active.items()):
        code = process.poll()
        if code is None:
            continue
        del active[run]
        if code != 0 and is_continuing:
            failed.append(f"{run.folder} failed with code {code}; see its log.txt")
        elif is_continuing:
            _start(run, active)


def _start(run: SuiteRun, active: Processes) -> None:
    command = run.next_command()
    if command is None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    # Several processes with more threads than cores wait for one another.
    environment = os.environ | {"OMP_NUM_THREADS": "1", PARENT: str(os.getpid())}
    with (run.folder / "log.txt").open("ab") as log:
        active[run] = Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=STDOUT,
            stdin=DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which terminates them.
        )


def _table(active: Processes, *, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("task", "torso", "seed", "trained"):
        table.add_column(column)
    for run in active:
        table.add_row(run.task, run.torso, str(run.seed), f"{run.progress():.0%}")
    if not active:
        table.box, table.show_header = None, False
    return table
