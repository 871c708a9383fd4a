"""Table of environments by name, and the function that creates them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import VectorEnv

from mtxl_rl.envs.backends.custom_env import (
    CustomEnv,
    CustomEnvConfig,
    make_custom,
    refuse_to_make,
)
from mtxl_rl.envs.backends.envpool_env import EnvPoolConfig, env_seeds, make_envpool
from mtxl_rl.envs.backends.gymnasium_env import GymnasiumConfig, make_gymnasium
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginalConfig
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv
from mtxl_rl.envs.wrappers.chosen_actions import choose_actions
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics


@runtime_checkable
class EnvConfig(Protocol):
    """The config of any environment: a dataclass whose `name` is a key of `ENVS`.

    Where all episodes, or all that succeed, have the same length, a property `steps_per_episode`
    may return it (0 where they do not). A run then staggers its environments over it
    (`stagger_steps`).

    A constant `TEACHERS` may name teachers of its own, which a field `teacher` chooses. The
    environment then reports the teacher's logits at every step and reset, in the info's
    ``teacher_logits`` [B, actions]. A method `player` of its vector environment makes the same
    players for `mtxl_rl.play`.

    A method `for_evaluation()` may return the config without what helps in training only, such as
    a curriculum.
    """

    name: str


def evaluation_env(config: EnvConfig) -> EnvConfig:
    """Return the config of the environments that evaluate: `config.for_evaluation()` if any."""
    for_evaluation = getattr(config, "for_evaluation", None)
    return config if for_evaluation is None else for_evaluation()


def with_teacher(config: EnvConfig, teacher: str) -> EnvConfig:
    """Return the config with a teacher of the environment's own, if it has one of that name."""
    if teacher not in getattr(config, "TEACHERS", ()):
        return config
    return dataclasses.replace(config, teacher=teacher)  # type: ignore[type-var]


class EnvEntry(NamedTuple):
    """An environment's config class and its factory `make(config, num_envs=..., seed=...)`.

    The vector environment must autoreset in ``NEXT_STEP`` mode and use the seed in its first
    ``reset()``.
    """

    config_class: type
    make: Callable[..., VectorEnv[Any, Any, Any]]


def _make_memory_maze(
    config: MemoryMazeConfig, *, num_envs: int, seed: int
) -> VectorEnv[Any, Any, Any]:
    # Imported here because numba takes a moment.
    from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

    return MemoryMazeVectorEnv(num_envs, config=config, seed=seed)


def _make_memory_maze_original(
    config: MemoryMazeOriginalConfig, *, num_envs: int, seed: int
) -> VectorEnv[Any, Any, Any]:
    # Imported here because its simulator is an extra, and heavy.
    from mtxl_rl.envs.memory_maze_original import make_memory_maze_original

    return make_memory_maze_original(
        size=config.size, num_envs=num_envs, seed=seed, num_workers=config.num_workers or None
    )


def _make_gymnasium(
    config: GymnasiumConfig, *, num_envs: int, seed: int
) -> VectorEnv[Any, Any, Any]:
    env = make_gymnasium(config.id, num_envs=num_envs, seed=seed, kwargs=dict(config.kwargs))
    return choose_actions(env, config.actions)


ENVS: dict[str, EnvEntry] = {
    **{name: EnvEntry(task.config_class, task.task_class) for name, task in TASKS.items()},
    "MemoryMaze": EnvEntry(MemoryMazeConfig, _make_memory_maze),
    "MemoryMaze-original": EnvEntry(MemoryMazeOriginalConfig, _make_memory_maze_original),
    "Gymnasium": EnvEntry(GymnasiumConfig, _make_gymnasium),
    "EnvPool": EnvEntry(EnvPoolConfig, make_envpool),
}


CUSTOM = EnvEntry(CustomEnvConfig, refuse_to_make)
"""Environments that Python code passes; the command line has no name for them."""


def env_entry(name: str) -> EnvEntry:
    """Return the entry of a name, or raise ValueError with the known names."""
    if name == CustomEnvConfig().name:
        return CUSTOM
    check_choice("env.name", name, ENVS)
    return ENVS[name]


def stream_seed(*key: int) -> int:
    """Return a seed for a vector environment, drawn from ``SeedSequence(key)``.

    Most vector environments seed environment i with seed + i, so that the runs of seeds 0 and 1
    would share all but one environment. With these seeds two runs of n environments share any with
    a probability of about n / 2^30.
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def make_vector_env(
    config: EnvConfig,
    *,
    num_envs: int,
    seed: int,
    first_env: int = 0,
    custom: CustomEnv | None = None,
) -> EpisodeStatistics:
    """Create the vector environment of a config, with checks and episode statistics.

    Args:
        config: The config of the environment.
        num_envs: Number of environments, at least 1.
        seed: Seed of the first reset, at least 0; a later ``reset(seed=...)`` replaces it.
        first_env: Index of the first environment in a run of several processes. An environment's
            seed depends on its index in the run, not on its process.
        custom: An environment that Python code passed, in place of the config's.
    """
    entry = env_entry(config.name)
    if not isinstance(config, entry.config_class):
        raise ValueError(
            f"env.name={config.name} came with a {type(config).__name__}; pass a "
            f"{entry.config_class.__name__}."
        )
    if num_envs < 1 or seed < 0:
        raise ValueError(
            f"num_envs={num_envs} must be at least 1 and seed={seed} at least 0, e.g. num_envs=16 "
            "seed=0."
        )
    env_seed: int | list[int] = seed + first_env
    if first_env and isinstance(config, EnvPoolConfig):
        env_seed = env_seeds(seed, num_envs=first_env + num_envs)[first_env:]
    if custom is None:
        env = entry.make(config, num_envs=num_envs, seed=env_seed)
    else:
        env = make_custom(custom, num_envs=num_envs, seed=seed + first_env)
    try:
        return EpisodeStatistics(CheckedVectorEnv(env))
    except ValueError:
        env.close()
        raise
