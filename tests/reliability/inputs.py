"""Options drawn at random: a run accepts them, or refuses them in one sentence.

python tests/reliability/inputs.py --composed 2000 --trained 100 --commands 200
python tests/reliability/inputs.py --case 17                 print and repeat one configuration

A configuration is a task's preset and one to six options of `mtxl_rl.train`: legal values, values
of another type, extreme numbers, unknown names, and text that is not in Hydra's grammar. Composing
must return a `TrainConfig` or raise a ValueError of one line. A sample of the configurations, with
tiny sizes, is trained for two iterations by the command line. That must write both rows of metrics,
or end with one sentence and exit code 1. So must the other command lines with their options.
"""

import argparse
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_origin

from counts import Counts, Outcome, call, cases, command, run_program

from mtxl_rl import compare, evaluate, export, suite, train, train_lm
from mtxl_rl.agents.encoders import IMAGE_ENCODERS
from mtxl_rl.agents.policy import PRECISIONS
from mtxl_rl.agents.ppo_config import REFRESH
from mtxl_rl.command import Option, choices, options_of
from mtxl_rl.compose import GROUPS, compose_config, env_class
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.tasks.cards import DIFFICULTIES
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.color_cubes import LEVELS
from mtxl_rl.envs.tasks.grid_memory_maze import TASK_SIZES
from mtxl_rl.envs.tasks.walker import VIEWS
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.torso.torso_config import (
    CELLS,
    GATES,
    KINDS,
    POSITIONS,
    READS,
    long_term_names,
    memory_classes,
)
from mtxl_rl.tracking.loggers import LOGGERS
from mtxl_rl.tracking.metrics import read_rows

NAMES: dict[str, Sequence[str]] = {
    "torso.kind": KINDS,
    "torso.gate": GATES,
    "torso.position": POSITIONS,
    "torso.long_term": long_term_names(),
    "torso.decay": tuple(
        {decay for memory in memory_classes().values() for decay in memory.decays}
    ),
    "torso.read": READS,
    "torso.slots.cell": CELLS,
    "torso.sublayers.activation": ("relu", "gelu"),
    "policy.image_encoder": tuple(IMAGE_ENCODERS),
    "policy.precision": tuple(PRECISIONS),
    "ppo.memory_refresh": REFRESH,
    "logger": LOGGERS,
    "device": ("cpu", "auto", "cuda", "cuda:7", "tpu", "cpu:x"),
    "launcher": ("torch", "ray", "slurm"),
    "resume": ("", "no_such_run", "no_such_run/checkpoints/step_000000000128.pt"),
    "run_dir": ("", "a folder", "a,b=c", "${seed}", "runs/$x/{y}"),
    "env.difficulty": DIFFICULTIES,
    "env.level": tuple(LEVELS),
    "env.view": tuple(VIEWS),
    "env.size": TASK_SIZES,
    "env.id": ("", "CartPole-v1", "no_such_module:No-v0", "NoSuchEnv-v0", "é"),
}
"""Legal and illegal values of the options that take a name."""
SMALL = ("1", "2", "4", "8", "16", "0", "3", "5", "7", "2.0", "1e1")
FRACTIONS = ("0", "0.1", "0.5", "0.9", "1", "1e-3", "1.0", "2")
EXTREME = (
    "-1", "-0.5", "nan", "inf", "-inf", "1e400", "1e-400", "999999999999", "9223372036854775808",
    "1e30", "-9223372036854775809", "1_000_000", "0x10",
)  # fmt: skip
OTHER_TYPES = (
    "abc", "true", "null", "1.5", "[1,2]", "[]", "{a:1}", "{}", "''", '"7"', "", "1 2", "1,2",
    "TRUE", "[a,[b]]", "{a:{b:1}}", "???", "${seed}", "${no_such_option}", "${oc.env:NO_SUCH_ENV}",
)  # fmt: skip
NOT_IN_GRAMMAR = (
    "'", '"', "[1,", "{a", "a=b", "a:b", "$", "${", "\\", "\x00", "é", "💥", "a b'c", "(1)",
    "choice(1,2)", "range(1,3)", "@", "!", "~", "a,", ",", "%s", "../../etc/passwd", "-", "--",
)  # fmt: skip
ODD_KEYS = (
    "+{}", "++{}", "~{}", "{}@x", "x@{}", "{}.x", "x.{}", ".{}", "{}.", "{} ", " {}", "{}[0]",
    "@package", "-{}", "--{}", "{}:", "+", "++", "~", "", "hydra", "hydra.{}", "_target_",
    "defaults",
)  # fmt: skip
KINDS_OF_VALUE = ("legal", "extreme", "another type", "not in the grammar", "unknown name")
TINY = (
    "model=tiny", "num_envs=4", "ppo.rollout_length=16", "torso.window_length=4", "device=cpu",
    "torso.segment_length=4", "ppo.bptt_segments=2", "torso.width=16", "torso.num_heads=2",
    "ppo.num_epochs=1", "ppo.num_minibatches=2", "stagger_steps=0", "num_processes=1",
)  # fmt: skip
FIXED = ("num_processes", "launcher", "compile", "total_steps", "run_dir", "logger", "eval_video",
         "eval_episodes", "checkpoint_seconds", "model", "resume", "device",
         "num_threads")  # fmt: skip
"""Options that a sample's training sets itself, because other values take seconds or processes."""
LAST = ("launcher=torch", "compile=false", "logger=none", "eval_video=false", "eval_episodes=2",
        "checkpoint_seconds=0")  # fmt: skip


CHEAP = [
    name
    for name in choices("env")
    if env_class(name) in {task.config_class for task in TASKS.values()}
]
"""Presets of the built-in tasks."""


@cache
def options_for(preset: str) -> list[Option]:
    """The options with this preset, without the groups and the sub-configurations."""
    options = options_of(TrainConfig, env=[env_class(preset)])
    return [option for option in options if option.name not in GROUPS]


def legal_value(option: Option, rng: random.Random) -> str:
    """A small value of the option's type, which may contradict other options."""
    if option.name in NAMES:
        return rng.choice(NAMES[option.name])
    if option.type is bool:
        return rng.choice(("true", "false"))
    if option.type is float:
        return rng.choice(FRACTIONS)
    if get_origin(option.type) is list:
        return rng.choice(("[]", "[1]", "[1,2]", "[2,1]", "1", "[0]", "[9]"))
    if get_origin(option.type) is dict:
        return rng.choice(("{}", "{a:1}", "{num_envs:2}", "{render_mode:null}"))
    return rng.choice(SMALL) if option.type is int else rng.choice(OTHER_TYPES)


def mutated(name: str, rng: random.Random) -> str:
    """An unknown name, similar to a known one."""
    if rng.random() < 0.3:
        return rng.choice(ODD_KEYS).format(name)
    at = rng.randrange(len(name))
    return rng.choice(
        (name[:at] + name[at + 1 :], name[:at] + rng.choice("xé_.0") + name[at:], name.upper(),
         name.rpartition(".")[2], f"env.{name}", "".join(rng.sample("abcdefgh._", 6)))
    )  # fmt: skip


def override(option: Option, kind: str, rng: random.Random) -> str:
    """One argument, `name=value`, of a kind of `KINDS_OF_VALUE`."""
    name, values = option.name, {"extreme": EXTREME, "another type": OTHER_TYPES,
                                 "not in the grammar": NOT_IN_GRAMMAR}  # fmt: skip
    if kind == "unknown name":
        name = mutated(name, rng)
        return name if rng.random() < 0.1 else f"{name}={legal_value(option, rng)}"
    value = legal_value(option, rng) if kind == "legal" else rng.choice(values[kind])
    return f"{name}={value}"


def configuration(seed: int, case: int, *, is_trained: bool) -> tuple[str, list[str]]:
    """The arguments of one configuration, and the worst kind of value in it."""
    rng = random.Random(f"{seed}/{case}/{is_trained}")
    return (trainable if is_trained else any_configuration)(rng)


def any_configuration(rng: random.Random) -> tuple[str, list[str]]:
    """Any preset and options; most contradict one another."""
    preset = rng.choice(choices("env"))
    overrides = [f"env={preset}"]
    if rng.random() < 0.05:
        overrides = rng.choice(([], ["env="], ["env=TMaz"], ["env=a/b"], ["env"], ["env=TMaze,é"]))
    for group in ("torso", "model"):
        if rng.random() < 0.3:
            overrides.append(f"{group}={rng.choice([*choices(group), 'tiny', '', 'x/y'])}")
    drawn = [rng.choice(options_for(preset)) for _ in range(rng.randint(1, 6))]
    worst = rng.choices(KINDS_OF_VALUE, weights=(3, 1, 1, 1, 1))[0]
    overrides += [override(option, "legal", rng) for option in drawn[1:]]
    overrides += [override(option, worst, rng) for option in drawn[:1]]
    rng.shuffle(overrides)
    return worst, overrides


def trainable(rng: random.Random) -> tuple[str, list[str]]:
    """A built-in task and options of which most fit together."""
    preset, torso = rng.choice(CHEAP), rng.choice(choices("torso"))
    skipped = (*FIXED, *(f"torso.{part}." for part in ("slots", "tokens") if part != torso))
    options = [
        option
        for option in options_for(preset)
        if not option.name.startswith(skipped) and not option.name.endswith("dropout")
    ]
    drawn = [rng.choice(options) for _ in range(rng.randint(1, 5))]
    worst = rng.choices(("legal", "extreme"), weights=(3, 1))[0]
    if worst == "extreme":  # Sizes of gigabytes are composed, not trained.
        drawn = [option for option in drawn if option.type is float]
    values = [override(option, worst, rng) for option in drawn]
    return worst, [f"env={preset}", f"torso={torso}", *values]


def compose(overrides: list[str]) -> Outcome:
    """Compose a configuration as Python code does."""

    def composed() -> None:
        config = compose_config(overrides)
        if not isinstance(config, TrainConfig):
            raise TypeError(config)

    return call(composed)


def trained(overrides: list[str], run_dir: Path) -> Outcome:
    """Train two iterations with the command line."""
    sizes = [
        part
        for part in TINY
        if part.partition("=")[0] not in {o.partition("=")[0] for o in overrides}
    ]
    argv = [*sizes, *overrides, *LAST, f"run_dir={run_dir}", "total_steps=128"]
    outcome = command(train.main, argv)
    if outcome.name != "accepted":
        return outcome
    if not run_dir.exists():  # dry_run=true, or --help.
        return Outcome("printed")
    rows = read_rows(run_dir)
    files = {path.name for path in run_dir.iterdir()}
    if not rows or rows[-1]["step"] < 128 or "policy.safetensors" not in files:
        return Outcome("failed", f"{rows}, {files}, {outcome.detail}")
    return Outcome("trained")


class Program(NamedTuple):
    """Another command line: its options, and arguments that make a case cheap."""

    main: Callable[[list[str]], object]
    schema: type
    arguments: Sequence[str]
    fixed: tuple[str, ...] = ()
    """Options that are not drawn, because some of their values take minutes."""


PROGRAMS = {
    "evaluate": Program(
        evaluate.main,
        EvaluateConfig,
        ("checkpoint=trained", "episodes=2", "num_envs=2", "memory=on"),
        ("compile", "video", "timeline"),
    ),
    "compare": Program(compare.main, compare.CompareConfig, ("trained",)),
    "export": Program(export.main, export.ExportConfig, ("checkpoint=no_such_run",)),
    "suite": Program(suite.main, suite.SuiteConfig, ("suite=no_such_suite",), ("suite",)),
    "train_lm": Program(
        train_lm.main,
        train_lm.TrainLMConfig,
        ("num_characters=2000", "updates=1", "batch_size=2", "dim=8", "heads=2", "segments=2"),
        ("num_processes", "num_characters", "updates", "batch_size", "dim", "depth"),
    ),
}


def other_command(name: str, rng: random.Random) -> tuple[str, list[str]]:
    """Arguments of another command line, and the worst kind of value in them."""
    program = PROGRAMS[name]
    options = [o for o in options_of(program.schema) if o.name not in (*program.fixed, *GROUPS)]
    worst = rng.choices(KINDS_OF_VALUE, weights=(3, 0, 1, 1, 1))[0]
    first, *others = (rng.choice(options) for _ in range(rng.randint(1, 3)))
    values = [override(option, "legal", rng) for option in others]
    return worst, [*program.arguments, *values, override(first, worst, rng)]


def run_other_commands(seed: int, numbers: Iterable[int]) -> Counts:
    """Run cases of the other command lines, a fifth of them each."""
    counts = Counts("inputs: other commands")
    command(
        train.main,
        [*TINY, *LAST, "env=TMaze", "env.corridor_length=3", "run_dir=trained", "total_steps=64"],
    )
    for number in numbers:
        rng = random.Random(f"{seed}/{number}/command")
        name = list(PROGRAMS)[number % len(PROGRAMS)]
        _, argv = other_command(name, rng)
        counts.add(name, f"case {number}: {argv}", command(PROGRAMS[name].main, argv))
    return counts


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Compose and train as many configurations as the options name."""
    tables = [run_other_commands(arguments.seed, cases(arguments, arguments.commands))]
    parts: tuple[tuple[str, int, Callable[[list[str], Path], Outcome]], ...] = (
        ("composed", arguments.composed, lambda overrides, _: compose(overrides)),
        ("trained", arguments.trained, trained),
    )
    for title, size, function in parts:
        counts = Counts(f"inputs: {title}")
        for case in cases(arguments, size):
            kind, overrides = configuration(arguments.seed, case, is_trained=title == "trained")
            run_dir = Path("run")
            outcome = function(overrides, run_dir)
            counts.add(kind, f"case {case}: {overrides}", outcome)
            shutil.rmtree(run_dir, ignore_errors=True)
        tables.append(counts)
    return tables


if __name__ == "__main__":
    run_program(__doc__, {"composed": 2000, "trained": 100, "commands": 200}, run)
