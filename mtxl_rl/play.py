"""Play a task without an agent: `python -m mtxl_rl.play env=NAME player=PLAYER`."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from omegaconf import OmegaConf

from mtxl_rl.agent import EVALUATION_SEED
from mtxl_rl.agents.actor import ended_episodes
from mtxl_rl.agents.episodes import episode_shares
from mtxl_rl.agents.transition import PolicyInputs, observation_shapes, to_tensors
from mtxl_rl.agents.vector_env import VectorEnv
from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.compose import compose_config
from mtxl_rl.env_keys import ACTION_MASK_KEY
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.names import nearest_names
from mtxl_rl.envs.registry import EnvConfig, evaluation_env, make_vector_env, stream_seed
from mtxl_rl.evaluation.drawing import require_drawing, try_write
from mtxl_rl.evaluation.episode_table import show_episodes
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.video import VIDEO_SUFFIXES, write_video
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import console, make_writable, print_line
from mtxl_rl.tracking.progress import Progress

USAGE = """\
python -m mtxl_rl.play env=NAME [player=PLAYER] [option=value ...]     play without an agent
python -m mtxl_rl.play env=NAME --help                                 list its env.* options too
"""
RANDOM, EXPLORER, KEYBOARD = "random", "explorer", "keyboard"

Player = Callable[[Any], NDArray[Any]]
"""Chooses actions [B, ...] for the observations of vector environments."""


@dataclass(kw_only=True, slots=True)
class PlayConfig:
    """The options of `mtxl_rl.play`."""

    player: str = RANDOM
    """random; in MemoryMaze and GridMemoryMaze also explorer, which knows what it has seen, and
    oracle, which knows the maze; in MemoryMaze also keyboard, a window for the arrow keys."""
    episodes: int = 100
    """Number of episodes."""
    num_envs: int = 16
    """Number of environments."""
    seed: int = 0
    """Seed of actions and environments; these are the environments of `evaluate` with this seed."""
    memory_steps: list[int] = field(default_factory=list)
    """Add explorers that forget what they last saw more than this many steps ago."""
    video: str = ""
    """Video of the first environment: .mp4 or .gif."""
    video_steps: int = 500
    """Maximum number of steps in the video."""
    env: Any = None
    """The environment of a preset, without a curriculum."""

    def __post_init__(self) -> None:
        """Check ranges, and whether the player plays in the environment."""
        check_at_least(self, 1, "episodes", "num_envs", "video_steps")
        check_at_least(self, 0, "seed")
        legal = players(self.env)
        if self.player not in legal:
            raise ValueError(
                f"player={self.player} does not play env={self.env.name}; choose one of "
                f"{', '.join(nearest_names(self.player, legal))}"
            )
        if self.memory_steps and self.player != EXPLORER:
            raise ValueError(
                f"memory_steps={self.memory_steps} is for player=explorer, not player={self.player}"
            )
        if self.video and self.player == KEYBOARD:
            raise ValueError(f"player=keyboard writes no video; remove video={self.video}")
        if self.video and Path(self.video).suffix not in VIDEO_SUFFIXES:
            raise ValueError(f"video={self.video} must end in {' or '.join(VIDEO_SUFFIXES)}")


def players(env: EnvConfig) -> list[str]:
    """Return the names of an environment's players."""
    keyboard = [KEYBOARD] if isinstance(env, MemoryMazeConfig) else []
    return [RANDOM, *getattr(env, "TEACHERS", ()), *keyboard]


def make_player(
    env: Any,  # noqa: ANN401
    name: str,
    *,
    seed: int = 0,
    memory_steps: int | None = None,
) -> Player:
    """Return a player of vector environments: random, or one of the environment's own.

    Args:
        env: The environments.
        name: One of `players`, except keyboard.
        seed: Seed of random actions.
        memory_steps: An explorer forgets what it last saw more than this many steps ago; None:
            nothing.
    """
    if name == RANDOM:
        return action_sampler(env.single_action_space, num_envs=env.num_envs, seed=seed)
    act = env.unwrapped.player(name, memory_steps=memory_steps)
    return lambda _: act()


def action_sampler(space: Space[Any], *, num_envs: int, seed: int) -> Player:
    """Return a function that draws actions [B, ...] for observations, uniform over the space.

    Where the observation has an action mask, the actions are uniform over the allowed ones. An
    unbounded side of a Box has Gymnasium's distribution (normal or exponential).
    """
    batch = batch_space(space, num_envs)
    batch.seed(seed)
    rng = np.random.default_rng(seed)

    def sample(observation: Any) -> NDArray[Any]:  # noqa: ANN401
        if isinstance(observation, dict) and ACTION_MASK_KEY in observation:
            return _allowed_actions(space, np.asarray(observation[ACTION_MASK_KEY]), rng)
        actions: NDArray[Any] = batch.sample()
        return actions

    return sample


def _allowed_actions(
    space: Space[Any], mask: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.int64]:
    """One of the actions that the mask [B, actions] allows, for each discrete action."""
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else [mask.shape[1]]
    noise = np.where(mask != 0, rng.random(mask.shape), -1)
    parts = np.split(noise, np.cumsum(sizes)[:-1], axis=1)
    actions = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    return actions if isinstance(space, spaces.MultiDiscrete) else actions[:, 0]


def play_episodes(
    env: VectorEnv,
    player: Player,
    *,
    episodes: int,
    seed: int,
    recording: Recording | None = None,
    on_count: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Return, length and, where the environment reports it, success of new episodes.

    Every environment plays its share of `episodes`, as in `agents.episodes.play_episodes`.

    Args:
        env: The environments.
        player: Chooses the actions.
        episodes: Number of episodes.
        seed: Seed of the environments.
        recording: Records the first environment.
        on_count: Called after each step with the number of episodes that ended.
    """
    remaining = episode_shares(episodes, num_envs=env.num_envs)
    counted: list[dict[str, float]] = []
    observation, _ = env.reset(seed=seed)
    reward, is_first = np.zeros(env.num_envs, np.float32), np.ones(env.num_envs, np.bool_)
    is_reset_row = np.zeros(env.num_envs, np.bool_)
    while True:
        if recording is not None:
            recording.observe_env(env, _inputs(env, observation, reward, is_first))
        if not remaining.any():
            return counted
        observation, reward, terminated, truncated, info = env.step(player(observation))
        is_first, is_reset_row = is_reset_row, terminated | truncated
        for episode in ended_episodes(info):
            if remaining[episode.env]:
                remaining[episode.env] -= 1
                counted.append(episode.statistics())
        if on_count is not None:
            on_count(len(counted))


def _inputs(
    env: VectorEnv,
    observation: Any,  # noqa: ANN401
    reward: NDArray[np.float32],
    is_first: NDArray[np.bool_],
) -> PolicyInputs:
    """What a policy would receive, without the previous action."""
    leaves = observation if isinstance(observation, dict) else {"obs": observation}
    shapes = observation_shapes(env.single_observation_space, episode_step=False)
    tensors = to_tensors(leaves, shapes, torch.device("cpu"))
    no_action = torch.zeros(env.num_envs, 0)
    return PolicyInputs(tensors, no_action, torch.tensor(reward), torch.tensor(is_first))


def run(config: PlayConfig) -> dict[str, list[dict[str, float]]]:
    """Play the episodes of each player, print their means, and return them."""
    seed = stream_seed(config.seed, EVALUATION_SEED)
    if config.player == KEYBOARD:
        from mtxl_rl.envs.memory_maze.keyboard import play

        play(config.env, seed=seed)
        return {}
    if config.video:
        require_drawing("video")
        make_writable(Path(config.video))
    results: dict[str, list[dict[str, float]]] = {}
    try:
        with closing(make_vector_env(config.env, num_envs=config.num_envs, seed=seed)) as env:
            recording = _play(config, env, seed=seed, results=results)
    finally:  # An interruption shows the players that were finished.
        if results:
            show_episodes(results, title=config.env.name, label="player")
    if config.video and try_write(partial(write_video, recording), Path(config.video)):
        print_line(f"video: {config.video}")
    return results


def _play(
    config: PlayConfig, env: VectorEnv, *, seed: int, results: dict[str, list[dict[str, float]]]
) -> Recording:
    """Add each player's episodes to `results`; return a recording of the first player."""
    make = partial(make_player, env, config.player, seed=config.seed)
    forgetful = {
        f"{EXPLORER}, {steps} steps of memory": make(memory_steps=steps)
        for steps in config.memory_steps
    }
    players = {config.player: make(), **forgetful}
    recording = Recording(
        env.single_observation_space,
        max_steps=config.video_steps,
        title=f"{config.env.name}: {config.player}",
    )
    num_episodes = config.episodes * len(players)
    with Progress(num_episodes, console=console, unit="episode") as progress:
        for name, player in players.items():
            results[name] = play_episodes(
                env, player, episodes=config.episodes, seed=seed,
                recording=None if results or not config.video else recording,
                on_count=lambda n: progress.update(len(results) * config.episodes + n),
            )  # fmt: skip
    return recording


def _describe(overrides: list[str]) -> Command:
    """The command whose env.* options are those of the preset."""
    base = OmegaConf.structured(PlayConfig)
    options = options_of(PlayConfig, env=[])
    preset = value_of(overrides, "env")
    if preset:
        env = evaluation_env(compose_config([f"env={preset}"]).env)
        base.env = env
        options = options_of(PlayConfig, env=[type(env)])
    return Command(usage=USAGE, options=options, base=base, groups=["env"], required=["env"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=run)


if __name__ == "__main__":
    main()
