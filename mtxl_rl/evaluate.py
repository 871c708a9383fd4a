"""Evaluate a trained agent: `python -m mtxl_rl.evaluate checkpoint=RUN_DIR`."""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from mtxl_rl.agents.collector import Actor, VectorEnv
from mtxl_rl.build import build_policy, load_weights
from mtxl_rl.config import TrainConfig, choices, from_options, load_config, run_folder
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.evaluation.intervals import mean_and_interval
from mtxl_rl.evaluation.suite import Suite, SuiteConfig, run_suite
from mtxl_rl.evaluation.visualize import VideoRecorder
from mtxl_rl.runtime.compile import compile_acting
from mtxl_rl.torso import Cache
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import command_line, make_writable, say, show
from mtxl_rl.tracking.files import atomic_write

MEMORIES = ("on", "zero", "noise")
# How the options of the run begin that change an evaluation: what else it was trained with has no
# effect on weights that are there, or would not fit them.
_CHANGEABLE = ("env.", "device", "num_threads", "compile", "policy.precision",
               "torso.window_length", "torso.segment_length")  # fmt: skip
_EVALUATION = 2**31  # The second word of the key to its seeds; training has its step there.


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """What `evaluate` takes, beside the run's options that change an evaluation."""

    checkpoint: str = ""
    """Folder of a run, or a checkpoint file in it."""
    which: str = "latest"
    """In a run's folder: latest or best."""
    episodes: int = 100
    """Episodes for each setting of the long-term memory."""
    num_envs: int = 16
    """Environments stepped together."""
    seed: int = 0
    """Seed of environments and actions; no training run draws the same environments."""
    memory: str = "on,zero,noise"
    """Settings of the long-term memory to compare: on, zero (emptied), noise (random contents)."""
    greedy: bool = False
    """Take the most probable action instead of drawing one."""
    output: str = ""
    """Write every episode to this JSON file too."""
    video: str = ""
    """Write what the first environment's agent sees, and its memory does, to this .mp4 or .gif."""
    timeline: str = ""
    """Draw what its memory does over time to this .png or .svg file."""
    film_steps: int = 500
    """Most steps of the video and of the timeline."""
    compile: bool = False
    """Compile acting, as in training; for long episodes."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.checkpoint:
            raise ValueError("checkpoint= is missing; give the folder of a run")
        if self.which != "latest" and Path(self.checkpoint).is_file():
            raise ValueError(
                f"which={self.which} chooses in a run's folder, and {self.checkpoint} is one "
                "checkpoint; give the one or the other"
            )
        check_at_least(self, 1, "episodes", "num_envs", "film_steps")
        check_at_least(self, 0, "seed")
        # YAML reads a bare on or off as a truth value.
        names = {"True": "on", "False": "off"}
        self.memory = ",".join(names.get(name, name) for name in str(self.memory).split(","))
        for name in self.memory.split(","):
            if name not in MEMORIES:
                raise ValueError(f"memory={name} is unknown; choose from {', '.join(MEMORIES)}")
        if (self.video or self.timeline) and "on" not in self.memory.split(","):
            raise ValueError(
                f"memory={self.memory} leaves out on, and video= and timeline= show an agent whose "
                "memory works; add it, as in memory=on,off"
            )
        for name, suffixes in (("video", (".mp4", ".gif")), ("timeline", (".png", ".svg"))):
            given = getattr(self, name)
            if given and Path(given).suffix not in suffixes:
                raise ValueError(f"{name}={given} must end in {' or '.join(suffixes)}")


def evaluate(
    actor: Actor, *, episodes: int, seed: int | None = None, memory: str = "on",
    recorder: VideoRecorder | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Return, length and, where the environment reports it, success of new episodes.

    Every environment plays its share of `episodes`, so that short ones are not over-represented.

    Args:
        actor: the policy in its environments.
        episodes: number of episodes.
        seed: seed of the environments; None keeps the one they have.
        memory: setting of the long-term memory, see `ablate_memory`.
        recorder: records the first environment.
    """
    actor.reset(seed=seed)
    num_envs = actor.env.num_envs
    cache = actor.prefill(actor.policy.torso.initial_state(num_envs))
    remaining = np.full(num_envs, episodes // num_envs)
    remaining[: episodes % num_envs] += 1
    counted: list[dict[str, float]] = []
    while remaining.any():
        if recorder is not None:
            recorder.add(actor.inputs())
        ablate_memory(cache, memory)
        _, ended = actor.step()
        for episode in ended:
            if remaining[episode.env]:
                remaining[episode.env] -= 1
                counted.append(episode.statistics())
    if recorder is not None:
        recorder.add(actor.inputs())  # These inputs hold the last step's reward.
    return counted


def ablate_memory(cache: Cache, setting: str) -> None:
    """Set the long-term memory: on keeps it, zero empties it, noise replaces it.

    The noise is normal, with the root mean square of what it replaces.
    """
    if setting == "zero":
        cache.long_term.zero_()
    elif setting == "noise":
        scale = cache.long_term.square().mean().sqrt()
        cache.long_term.copy_(torch.randn_like(cache.long_term) * scale)


def run(config: EvaluateConfig, overrides: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Evaluate under every setting of the memory, print a table, and return the episodes."""
    path = Path(config.checkpoint)
    train = load_config(
        run_folder(path),
        [*overrides, f"compile={config.compile}"],
        only=_CHANGEABLE,
        beside=[field.name for field in fields(EvaluateConfig)],
    )
    state = checkpoint.load(path, which=config.which)
    names = _settings(config, train)
    for output in (config.output, config.video, config.timeline):
        if output:
            make_writable(Path(output))
    results: dict[str, list[dict[str, float]]] = {}
    try:
        _evaluate_settings(config, train, state, names, results)
    finally:  # An interrupted evaluation shows and keeps what was measured.
        if results:
            _print(results, train)
        if results and config.output:
            output_path = Path(config.output)
            if len(results) < len(names):  # Under another name, to keep an earlier complete file.
                output_path = output_path.with_suffix(f".partial{output_path.suffix}")
                say(f"{output_path}: what was measured until it was stopped")
            _write(output_path, config, train, state["step"], overrides, results)
    return results


def _evaluate_settings(
    config: EvaluateConfig,
    train: TrainConfig,
    state: checkpoint.TrainingState,
    names: Sequence[str],
    results: dict[str, list[dict[str, float]]],
) -> None:
    """Fill `results` with the episodes of each setting: the same environments and noise in each."""
    seed = stream_seed(config.seed, _EVALUATION)
    with closing(make_vector_env(train.env, num_envs=config.num_envs, seed=seed)) as env:
        actor = _actor(config, train, state, env)
        recorder = _recorder(config, train, actor)
        for name in names:
            torch.manual_seed(config.seed)
            if actor.generator is not None:
                actor.generator.manual_seed(config.seed)
            with torch.no_grad(), actor.policy.autocast():
                results[name] = evaluate(
                    actor, episodes=config.episodes, seed=seed, memory=name,
                    recorder=recorder if name == "on" else None,
                )  # fmt: skip
        if recorder is not None:  # After all settings: a failure to draw loses no results.
            _draw(recorder, config)


def _draw(recorder: VideoRecorder, config: EvaluateConfig) -> None:
    if config.video:
        recorder.write_video(Path(config.video))
    if config.timeline:
        recorder.write_timeline(Path(config.timeline))


def _settings(config: EvaluateConfig, train: TrainConfig) -> list[str]:
    """The settings of the memory that are evaluated; what is done otherwise than asked is told."""
    names = config.memory.split(",")
    if not train.torso.has_long_term and names != ["on"]:
        names = ["on"]
        say("this agent has no long-term memory: it is evaluated once, as it is")
    return names


def evidence(train: TrainConfig, episodes: Sequence[dict[str, float]]) -> str:
    """What these episodes can say of long-term memory: nothing if the windows reach so far."""
    reach, longest = train.torso.receptive_field, int(max(e["length"] for e in episodes))
    if not train.torso.has_long_term:
        return f"no long-term memory: each layer's window together reaches {reach} steps back"
    if longest <= reach:
        return (
            f"not evidence of long-term memory: the longest episode has {longest} steps, and the "
            f"windows reach {reach} back"
        )
    return f"episodes of up to {longest} steps, of which the windows reach {reach} back"


def _write(
    path: Path,
    config: EvaluateConfig,
    train: TrainConfig,
    step: int,
    overrides: Sequence[str],
    results: dict[str, list[dict[str, float]]],
) -> None:
    document = {
        "checkpoint": config.checkpoint,
        "step": step,
        "which": config.which,
        "seed": config.seed,
        "greedy": config.greedy,
        "num_envs": config.num_envs,
        "precision": train.policy.precision,
        "overrides": list(overrides),
        "evidence": evidence(train, next(iter(results.values()))),
        "episodes": results,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _actor(
    config: EvaluateConfig, train: TrainConfig, state: checkpoint.TrainingState, env: VectorEnv
) -> Actor:
    """The trained policy in the environments."""
    torch.set_num_threads(train.num_threads)
    device = train.torch_device()
    policy = build_policy(train, env).to(device)
    load_weights(policy, state, where=config.checkpoint)
    if train.compile:
        compile_acting(policy)
    return Actor(env, policy, generator=None if config.greedy else torch.Generator(device))


def _recorder(config: EvaluateConfig, train: TrainConfig, actor: Actor) -> VideoRecorder | None:
    """The recorder of the requested pictures, if any."""
    if not (config.video or config.timeline):
        return None
    space = actor.env.single_observation_space
    recorder = VideoRecorder(actor.policy, space, max_steps=config.film_steps, title=train.env.name)
    if config.timeline:
        recorder.check_timeline()
    return recorder


def _print(results: dict[str, list[dict[str, float]]], train: TrainConfig) -> None:
    table = Table(title=f"{train.env.name}: mean +- 95 % confidence interval, by long-term memory")
    table.add_column("memory")
    keys = sorted({key for episodes in results.values() for key in episodes[0]})
    for key in ["episodes", *keys]:
        table.add_column(key, justify="right")
    for name, episodes in results.items():
        label = "none" if not train.torso.has_long_term else name
        cells = [_mean([episode[key] for episode in episodes]) for key in keys]
        table.add_row(label, str(len(episodes)), *cells)
    show(table)
    say(evidence(train, next(iter(results.values()))))


def _mean(numbers: Sequence[float]) -> str:
    mean, half = mean_and_interval(numbers)
    return f"{mean:.3f} " + ("(no interval)" if math.isnan(half) else f"+- {half:.3f}")


def usage() -> str:
    """What `--help` prints."""
    defaults = "\n".join(f"  {field.name}={field.default}" for field in fields(EvaluateConfig))
    return f"""\
python -m mtxl_rl.evaluate checkpoint=RUN_DIR [option=value ...]     evaluate a run

{defaults}

env.* options change the run's environment, as in env.corridor_length=1000; device=, num_threads=,
policy.precision=, torso.window_length= and torso.segment_length= take the place of the run's own.

python -m mtxl_rl.evaluate suite=NAME [torsos=[mtxl,gtrxl]] [seeds=5] [episodes=100]
    [jobs=2] [folder=results/NAME]     train what is missing, evaluate all, write a report

  suites: {", ".join(choices("suite"))}, or a YAML file like them
"""


def _suite(given: Sequence[str]) -> None:
    """Train what is missing of a suite, evaluate it, and report."""
    try:
        from mtxl_rl.evaluation.report import write_report
    except ImportError as error:
        raise ImportError(f"suite= needs {error.name}: pip install 'mtxl_rl[report]'") from error
    config = from_options(SuiteConfig, given)
    suite = Suite.load(config)
    command = ["python", "-m", "mtxl_rl.evaluate", *given]
    try:
        failed = run_suite(suite)
    except KeyboardInterrupt:
        say(f"stopped; go on with: {' '.join(command)}")
        return
    say(f"report: {write_report(suite, command=command)}")
    if failed:
        raise RuntimeError("; ".join(failed))


def _run_or_suite(given: list[str]) -> None:
    if any(part.startswith("suite=") for part in given):
        _suite(given)
        return
    bad = [part for part in given if "=" not in part]
    if bad:
        names = ", ".join(field.name for field in fields(EvaluateConfig))
        raise ValueError(f"{bad[0]!r} is no option; options are name=value: {names}, env.*")
    own = {field.name for field in fields(EvaluateConfig)}
    mine = [part for part in given if part.split("=", 1)[0] in own]
    theirs = [part for part in given if part not in mine]
    run(from_options(EvaluateConfig, mine), theirs)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    command_line(arguments, usage=usage, run=_run_or_suite)


if __name__ == "__main__":
    main()
