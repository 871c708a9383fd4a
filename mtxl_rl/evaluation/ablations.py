"""Play an agent's episodes with its long-term memory on, zeroed, and replaced by noise."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from mtxl_rl.agent import EVALUATION_SEED, Agent
from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.episodes import play_episodes
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.evaluation.drawing import try_write
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.evaluation.pose_errors import PoseError, PoseErrors
from mtxl_rl.evaluation.probe import Explained, Probe, draw_probe
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import write_timeline
from mtxl_rl.evaluation.video import write_video
from mtxl_rl.runtime.compile import compile_acting
from mtxl_rl.saved_agent import SavedAgent
from mtxl_rl.tracking.cli import console, print_line
from mtxl_rl.tracking.progress import Progress

Observer = Recording | Probe | PoseErrors


class Probed(NamedTuple):
    """What `probe=` measures; empty without it."""

    explained: list[Explained]
    """R^2 of the predictions by leaf, memory and age."""
    pose_errors: list[PoseError]
    """Of an agent's odometry, with its memory on."""


def evaluate_ablations(
    config: EvaluateConfig,
    saved: SavedAgent,
    names: Sequence[str],
    results: dict[str, list[dict[str, float]]],
) -> Probed:
    """Play each setting's episodes into `results`, and draw the pictures that were asked for.

    Every setting has the same environments and noise.

    Args:
        config: The options.
        saved: The agent, with the options that the evaluation changes.
        names: Settings of the memory.
        results: Receives the episodes by setting, also those before an interruption.

    Returns:
        What `probe=` measures.
    """
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
            for name in names:
                torch.manual_seed(config.seed)
                if actor.generator is not None:
                    actor.generator.manual_seed(config.seed)
                results[name] = play_episodes(
                    actor, episodes=config.episodes, seed=seed, memory=name,
                    on_step=partial(_observe, observers[name]),
                    on_count=lambda n: progress.update(len(results) * config.episodes + n),
                )  # fmt: skip
        # After all settings: a failure to draw loses no results.
        return _draw(config, train, [each for name in names for each in observers[name]])


def _observers(
    config: EvaluateConfig, train: TrainConfig, actor: Actor, names: Sequence[str]
) -> dict[str, list[Observer]]:
    """Observers of each step, by setting of the memory; pictures show an agent with memory."""
    observers = {name: list[Observer]() for name in names}
    if config.video or config.timeline:
        observers["on"].append(_recording(config, train, actor))
    if config.probe:
        for name in names:
            observers[name].append(Probe(actor.policy, memory=name))
        if actor.policy.movement_decoder is not None and "on" in names:
            observers["on"].append(PoseErrors(actor.policy.movement_decoder))
    return observers


def _observe(observers: Sequence[Observer], actor: Actor) -> None:
    for observer in observers:
        observer.observe(actor)


def _draw(config: EvaluateConfig, train: TrainConfig, observers: Sequence[Observer]) -> Probed:
    """Write the pictures that were asked for, and return what was measured."""
    explained: list[Explained] = []
    pose_errors: list[PoseError] = []
    for observer in observers:
        if isinstance(observer, Probe):
            explained += observer.results()
            continue
        if isinstance(observer, PoseErrors):
            pose_errors += observer.results()
            continue
        if config.video:
            try_write(partial(write_video, observer), Path(config.video))
        if config.timeline and observer.has_diagnostics:
            write = partial(write_timeline, observer, panels=config.timeline_panels)
            try_write(write, Path(config.timeline))
    if config.probe:
        title = _title(config, train)
        reach = train.torso.receptive_field
        try_write(partial(draw_probe, explained, title=title, reach=reach), Path(config.probe))
    return Probed(explained, pose_errors)


def _title(config: EvaluateConfig, train: TrainConfig) -> str:
    return f"{train.env.name}, {config.checkpoint} ({config.which})"


def _recording(config: EvaluateConfig, train: TrainConfig, actor: Actor) -> Recording:
    """The recording that the video and the timeline show."""
    recording = Recording(
        actor.policy.observation_space,
        policy=actor.policy,
        max_steps=config.video_steps,
        title=_title(config, train),
        renders=bool(config.video),
    )
    if config.timeline and not recording.has_diagnostics:
        print_line(
            f"timeline={config.timeline} is left out: a torso of kind {train.torso.kind} has no "
            "attention or long-term memory to plot"
        )
    return recording
