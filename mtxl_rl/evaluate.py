"""Evaluate a trained agent: `python -m mtxl_rl.evaluate checkpoint=RUN_DIR`."""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.table import Table

from mtxl_rl.agent import EVALUATION_SEED, Agent
from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.episodes import MEMORIES, play_episodes
from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import evaluation_env, make_vector_env, stream_seed
from mtxl_rl.evaluation.drawing import require_drawing, try_write
from mtxl_rl.evaluation.intervals import mean_and_interval
from mtxl_rl.evaluation.probe import AGES, Explained, Probe, draw_probe
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import PLOT_SUFFIXES, write_timeline
from mtxl_rl.evaluation.video import VIDEO_SUFFIXES, write_video
from mtxl_rl.runtime.compile import compile_acting
from mtxl_rl.saved_agent import SavedAgent, read_agent, saved_config
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import console, make_writable, say, show
from mtxl_rl.tracking.files import atomic_write
from mtxl_rl.tracking.progress import Progress


@dataclass(kw_only=True, slots=True)
class PolicyOverrides:
    """What an evaluation can change of the run's policy."""

    precision: str = ""
    """float32, bfloat16 or auto (by the device); empty: the run's."""


@dataclass(kw_only=True, slots=True)
class TorsoOverrides:
    """What an evaluation can change of the run's torso: sizes that no weight's shape depends on."""

    window_length: int = 0
    """Short-term memory in steps, M; 0: the run's."""
    segment_length: int = 0
    """Steps between two writes of the long-term memory, S; 0: the run's."""


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The options of `mtxl_rl.evaluate`."""

    checkpoint: str = ""
    """Folder of a run, a checkpoint file (.pt), or a policy.safetensors."""
    which: str = "latest"
    """Which checkpoint of a run's folder: latest or best."""
    episodes: int = 100
    """Episodes for each setting of the long-term memory."""
    num_envs: int = 16
    """Number of environments."""
    seed: int = 0
    """Seed of environments and actions. No training run uses the same environment seeds."""
    memory: list[str] = field(default_factory=lambda: list(MEMORIES))
    """Settings of the long-term memory to compare: on, zero (ablated: zeroed before every step),
    noise (replaced by noise of the same scale before every step)."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""
    output: str = ""
    """JSON file for the episodes' returns, lengths and successes."""
    video: str = ""
    """Video of the first environment and the agent's memory: .mp4 or .gif."""
    timeline: str = ""
    """Plot of the agent's memory over time: .png or .svg."""
    probe: str = ""
    """Plot of what the agent's output tells of the leaves of auxiliary.predict, by the steps since
    each target was last in view: .png or .svg. Memory Maze and GridMemoryMaze."""
    video_steps: int = 500
    """Maximum number of steps in the video and in the timeline."""
    compile: bool = False
    """Compile acting, as in training. It pays for long episodes."""
    device: str = ""
    """cpu, cuda, cuda:N or auto; empty: the run's."""
    num_threads: int = 0
    """CPU threads of torch; 0: the run's."""
    env: Any = None
    """The environment; None: the run's, without a curriculum."""
    policy: PolicyOverrides = field(default_factory=PolicyOverrides)
    torso: TorsoOverrides = field(default_factory=TorsoOverrides)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.checkpoint:
            raise ValueError("checkpoint= is missing; give the folder of a run")
        if self.which != "latest" and Path(self.checkpoint).is_file():
            raise ValueError(
                f"which={self.which} chooses in a run's folder, and {self.checkpoint} is one "
                "checkpoint; give one or the other"
            )
        check_at_least(self, 1, "episodes", "num_envs", "video_steps")
        check_at_least(self, 0, "seed", "num_threads")
        check_at_least(self.torso, 0, "window_length", "segment_length", prefix="torso.")
        settings = ",".join(self.memory)
        if not self.memory or set(self.memory) - set(MEMORIES):
            raise ValueError(f"memory={settings} is unknown; choose from {', '.join(MEMORIES)}")
        if (self.video or self.timeline) and "on" not in self.memory:
            raise ValueError(
                f"memory={settings} does not contain on, and video= and timeline= show an agent "
                f"with its memory; type memory=on,{settings}"
            )
        pictures = {"video": VIDEO_SUFFIXES, "timeline": PLOT_SUFFIXES, "probe": PLOT_SUFFIXES}
        for name, suffixes in pictures.items():
            path = getattr(self, name)
            if path and Path(path).suffix not in suffixes:
                raise ValueError(f"{name}={path} must end in {' or '.join(suffixes)}")

    def train_config(self, saved: TrainConfig) -> TrainConfig:
        """The run's configuration `saved` with this evaluation's changes."""
        torso, policy = self.torso, self.policy
        return replace(
            saved,
            env=evaluation_env(saved.env) if self.env is None else self.env,
            device=self.device or saved.device,
            num_threads=self.num_threads or saved.num_threads,
            compile=self.compile,
            policy=replace(saved.policy, precision=policy.precision or saved.policy.precision),
            torso=replace(
                saved.torso,
                window_length=torso.window_length or saved.torso.window_length,
                segment_length=torso.segment_length or saved.torso.segment_length,
            ),
        )


def run(config: EvaluateConfig) -> dict[str, list[dict[str, float]]]:
    """Evaluate under every setting of the memory, print a table, and return the episodes."""
    for option in ("video", "timeline", "probe"):
        if getattr(config, option):
            require_drawing(option)
    saved = read_agent(Path(config.checkpoint), which=config.which)
    say(f"{saved.path}: step {saved.step:,}")
    train = config.train_config(saved.config)
    names = _settings(config, train)
    for output in (config.output, config.video, config.timeline, config.probe):
        if output:
            make_writable(Path(output))
    results: dict[str, list[dict[str, float]]] = {}
    try:
        _evaluate_settings(config, replace(saved, config=train), names, results)
    finally:  # An interrupted evaluation shows and keeps what was measured.
        if results:
            _print(results, train)
        if results and config.output:
            output_path = Path(config.output)
            if len(results) < len(names):  # Under another name, to keep an earlier complete file.
                output_path = output_path.with_suffix(f".partial{output_path.suffix}")
                say(f"{output_path}: the settings that were finished before the evaluation stopped")
            _write(output_path, config, train, saved.step, results)
    return results


def _evaluate_settings(
    config: EvaluateConfig,
    saved: SavedAgent,
    names: Sequence[str],
    results: dict[str, list[dict[str, float]]],
) -> None:
    """Fill `results` with the episodes of each setting: the same environments and noise in each."""
    train = saved.config
    torch.set_num_threads(train.num_threads)
    agent = Agent(saved, device=train.device)
    if train.compile:
        compile_acting(agent.policy)
    seed = stream_seed(config.seed, EVALUATION_SEED)
    with closing(make_vector_env(train.env, num_envs=config.num_envs, seed=seed)) as env:
        actor = agent.actor(env, greedy=config.greedy, is_training=bool(config.probe))
        observers = _observers(config, train, actor, names)
        with Progress(config.episodes * len(names), console=console, unit="episode") as progress:
            for number, name in enumerate(names):
                torch.manual_seed(config.seed)
                if actor.generator is not None:
                    actor.generator.manual_seed(config.seed)
                finished = number * config.episodes
                results[name] = play_episodes(
                    actor, episodes=config.episodes, seed=seed, memory=name,
                    on_step=partial(_observe, observers[name]),
                    on_count=partial(_count, progress, finished),
                )  # fmt: skip
        # After all settings: a failure to draw loses no results.
        _draw(config, train, [each for name in names for each in observers[name]])


def _observers(
    config: EvaluateConfig, train: TrainConfig, actor: Actor, names: Sequence[str]
) -> dict[str, list[Recording | Probe]]:
    """What sees each step, by setting of the memory; the pictures show an agent with memory."""
    observers = {name: list[Recording | Probe]() for name in names}
    if config.video or config.timeline:
        observers["on"].append(_recording(config, train, actor))
    if config.probe:
        for name in names:
            observers[name].append(Probe(actor.policy, memory=name))
    return observers


def _observe(observers: Sequence[Recording | Probe], actor: Actor) -> None:
    for observer in observers:
        observer.observe(actor)


def _draw(
    config: EvaluateConfig, train: TrainConfig, observers: Sequence[Recording | Probe]
) -> None:
    """Write the pictures that were asked for."""
    explained: list[Explained] = []
    for observer in observers:
        if isinstance(observer, Probe):
            explained += observer.results()
            continue
        if config.video:
            try_write(partial(write_video, observer), Path(config.video))
        if config.timeline and observer.has_diagnostics:
            try_write(partial(write_timeline, observer), Path(config.timeline))
    if config.probe:
        _print_probe(explained)
        title = f"{train.env.name}, {config.checkpoint} ({config.which})"
        reach = train.torso.receptive_field
        try_write(partial(draw_probe, explained, title=title, reach=reach), Path(config.probe))


def _count(progress: Progress, finished: int, count: int) -> None:
    progress.update(finished + count)


def _settings(config: EvaluateConfig, train: TrainConfig) -> list[str]:
    """The settings of the memory to evaluate: only on for an agent without long-term memory."""
    names = config.memory
    if not train.torso.has_long_term and names != ["on"]:
        names = ["on"]
        say("This agent has no long-term memory: evaluating memory=on only.")
    return names


def evidence(train: TrainConfig, episodes: Sequence[dict[str, float]]) -> str:
    """Whether these episodes are evidence of long-term memory: not if the windows reach as far."""
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
    results: dict[str, list[dict[str, float]]],
) -> None:
    document = {
        "step": step,
        "config": OmegaConf.to_container(OmegaConf.structured(config)),
        "env": OmegaConf.to_container(OmegaConf.structured(train.env)),
        "precision": train.policy.for_device(train.torch_device()).precision,
        "evidence": evidence(train, next(iter(results.values()))),
        "episodes": results,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _recording(config: EvaluateConfig, train: TrainConfig, actor: Actor) -> Recording:
    """The recording that the video and the timeline show."""
    title = f"{train.env.name}, {config.checkpoint} ({config.which})"
    recording = Recording(
        actor.policy, max_steps=config.video_steps, title=title, renders=bool(config.video)
    )
    if config.timeline and not recording.has_diagnostics:
        say(
            f"timeline={config.timeline} is left out: a torso of kind {train.torso.kind} has no "
            "attention or long-term memory to plot"
        )
    return recording


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


def _print_probe(results: Sequence[Explained]) -> None:
    table = Table(title="R^2 of the predictions, by steps since the target was last in view")
    for name in ("leaf", "memory"):
        table.add_column(name)
    for age in AGES:
        table.add_column(age, justify="right")
    for leaf, memory in dict.fromkeys((result.leaf, result.memory) for result in results):
        rows = [r for r in results if (r.leaf, r.memory) == (leaf, memory)]
        table.add_row(leaf, memory, *("" if math.isnan(r.r2) else f"{r.r2:.2f}" for r in rows))
    show(table)


def _mean(numbers: Sequence[float]) -> str:
    mean, half = mean_and_interval(numbers)
    return f"{mean:.3f} " + ("(no interval)" if math.isnan(half) else f"+- {half:.3f}")


USAGE = """\
python -m mtxl_rl.evaluate checkpoint=RUN_DIR [option=value ...]     evaluate a run
python -m mtxl_rl.evaluate checkpoint=RUN_DIR --help                 list its env.* options too

To train and evaluate the runs of a suite: python -m mtxl_rl.suite suite=NAME
"""


def _describe(overrides: list[str]) -> Command:
    """The command whose env.* options are those of the run's environment."""
    if value_of(overrides, "suite") is not None:
        raise ValueError(
            "option 'suite' is unknown; a suite trains agents before it evaluates them, with "
            f"python -m mtxl_rl.suite {' '.join(overrides)}"
        )
    source = value_of(overrides, "checkpoint")
    base = OmegaConf.structured(EvaluateConfig)
    if not source:
        return Command(usage=USAGE, options=options_of(EvaluateConfig), base=base)
    env = evaluation_env(saved_config(Path(source)).env)
    base.env = env
    options = options_of(EvaluateConfig, env=[type(env)])
    return Command(usage=USAGE, options=options, base=base)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=run)


if __name__ == "__main__":
    main()
