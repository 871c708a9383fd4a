"""Scores of random play, which a guess reaches: `python -m mtxl_rl.random_play env=NAME`."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from omegaconf import OmegaConf

from mtxl_rl.agent import EVALUATION_SEED
from mtxl_rl.agents.actor import ended_episodes
from mtxl_rl.agents.episodes import episode_shares
from mtxl_rl.agents.vector_env import VectorEnv
from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.compose import compose_config
from mtxl_rl.env_keys import ACTION_MASK_KEY
from mtxl_rl.envs.registry import evaluation_env, make_vector_env, stream_seed
from mtxl_rl.evaluation.episode_table import show_episodes
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import console
from mtxl_rl.tracking.progress import Progress

USAGE = """\
python -m mtxl_rl.random_play env=NAME [option=value ...]     play random actions
python -m mtxl_rl.random_play env=NAME --help                 list its env.* options too
"""


@dataclass(kw_only=True, slots=True)
class RandomPlayConfig:
    """The options of `mtxl_rl.random_play`."""

    episodes: int = 100
    """Number of episodes."""
    num_envs: int = 16
    """Number of environments."""
    seed: int = 0
    """Seed of actions and environments; these are the environments of `evaluate` with this seed."""
    env: Any = None
    """The environment of a preset, without a curriculum."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_at_least(self, 1, "episodes", "num_envs")
        check_at_least(self, 0, "seed")


def play_randomly(
    env: VectorEnv, *, episodes: int, seed: int, on_count: Callable[[int], None] | None = None
) -> list[dict[str, float]]:
    """Return, length and, where the environment reports it, success of new episodes.

    Every environment plays its share of `episodes`, as in `play_episodes`.

    Args:
        env: The environments, with their seed.
        episodes: Number of episodes.
        seed: Seed of the actions.
        on_count: Called after each step with the number of episodes that ended.
    """
    sample = action_sampler(env.single_action_space, num_envs=env.num_envs, seed=seed)
    remaining = episode_shares(episodes, num_envs=env.num_envs)
    counted: list[dict[str, float]] = []
    observation, _ = env.reset()
    while remaining.any():
        observation, _, _, _, info = env.step(sample(observation))
        for episode in ended_episodes(info):
            if remaining[episode.env]:
                remaining[episode.env] -= 1
                counted.append(episode.statistics())
        if on_count is not None:
            on_count(len(counted))
    return counted


def action_sampler(space: Space[Any], *, num_envs: int, seed: int) -> Callable[[Any], NDArray[Any]]:
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


def run(config: RandomPlayConfig) -> list[dict[str, float]]:
    """Play the episodes, print their means, and return them."""
    seed = stream_seed(config.seed, EVALUATION_SEED)
    with (
        closing(make_vector_env(config.env, num_envs=config.num_envs, seed=seed)) as env,
        Progress(config.episodes, console=console, unit="episode") as progress,
    ):
        results = play_randomly(
            env, episodes=config.episodes, seed=config.seed, on_count=progress.update
        )
    show_episodes({"random": results}, title=config.env.name, label="actions")
    return results


def _describe(overrides: list[str]) -> Command:
    """The command whose env.* options are those of the preset."""
    base = OmegaConf.structured(RandomPlayConfig)
    options = options_of(RandomPlayConfig, env=[])
    preset = value_of(overrides, "env")
    if preset:
        env = evaluation_env(compose_config([f"env={preset}"]).env)
        base.env = env
        options = options_of(RandomPlayConfig, env=[type(env)])
    return Command(usage=USAGE, options=options, base=base, groups=["env"], required=["env"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=run)


if __name__ == "__main__":
    main()
