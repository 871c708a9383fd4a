"""Evaluation while training: new episodes in environments of its own."""

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtxl_rl.agent import Agent
from mtxl_rl.envs.backends.custom_env import CustomEnv, is_factory
from mtxl_rl.evaluation.drawing import require_drawing, try_write
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import write_timeline
from mtxl_rl.evaluation.video import write_video
from mtxl_rl.saved_agent import SavedAgent

MAX_ENVS = 16
"""Environments that are stepped together, at most."""
RECORDED_STEPS = 100
"""Steps of the first environment in the video and the timeline."""
_NAMES = {"return": "episodic_return", "length": "episodic_length", "success": "success"}
SEED = 2**31 + 1
"""Other episodes than those of `mtxl_rl.evaluate`, so that the best checkpoint is not chosen by the
episodes that test it."""


class Evaluation(NamedTuple):
    """Results of an evaluation."""

    metrics: dict[str, float]
    """Means over the episodes, as "eval/episodic_return", and over the memory's writes and reads in
    the first environment, as "memory/strength"."""
    histograms: dict[str, NDArray[Any]]
    """Per layer: distances by which gates moved the stream, and write strengths."""
    recording: Recording
    """The first steps of the first environment."""


def evaluate_while_training(
    saved: SavedAgent, *, episodes: int, env: CustomEnv | None = None
) -> Evaluation:
    """Play the same new episodes at each call; the training run's numbers do not change.

    Args:
        saved: The current agent.
        episodes: Number of episodes.
        env: See `Agent.evaluate`.
    """
    begin = time.perf_counter()
    num_envs = min(episodes, MAX_ENVS) if env is None or is_factory(env) else None
    device = saved.config.torch_device()
    with unchanged_random_state(device):
        agent = Agent(saved, device=str(device))
        recording = Recording(
            agent.policy.observation_space, policy=agent.policy, max_steps=RECORDED_STEPS,
            title=f"{saved.config.env.name}, step {saved.step:,}",
            renders=saved.config.eval_video and can_draw(),
        )  # fmt: skip
        results = agent.evaluate(
            env, episodes=episodes, num_envs=num_envs, seed=saved.config.seed + SEED,
            on_step=recording.observe,
        )  # fmt: skip
    metrics = {
        f"eval/{name}": statistics.fmean(episode[key] for episode in results if key in episode)
        for key, name in _NAMES.items()
        if any(key in episode for episode in results)
    }
    for key in ("memory/strength", "memory/retention", "moved/read"):
        layers = [
            record[key].float().mean().item() for record in recording.diagnostics if key in record
        ]
        if layers:
            metrics[f"memory/{key.rpartition('/')[2]}"] = statistics.fmean(layers)
    metrics["time/eval_seconds"] = time.perf_counter() - begin
    return Evaluation(metrics, _histograms(recording), recording)


def _histograms(recording: Recording) -> dict[str, NDArray[Any]]:
    return {
        f"gates/layer_{n}/{key.replace('/', '_')}": field.float().cpu().numpy()
        for n, record in enumerate(recording.diagnostics, 1)
        for key, field in record.items()
        if key.startswith("moved/") or key == "memory/strength"
    }


def can_draw() -> bool:
    """Whether the packages are installed that `draw` needs."""
    try:
        require_drawing("video")
    except ImportError:
        return False
    return True


def draw(recording: Recording, folder: Path, *, step: int) -> dict[str, Path]:
    """Write a video, and a memory timeline if the torso has one; their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"step_{step:012d}"
    video, timeline = folder / f"{stem}.gif", folder / f"{stem}.png"
    paths = dict[str, Path]()
    if try_write(partial(write_video, recording), video):
        paths["evaluation/video"] = video
    if recording.has_diagnostics and try_write(partial(write_timeline, recording), timeline):
        paths["evaluation/memory_timeline"] = timeline
    return paths


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python after the block."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
