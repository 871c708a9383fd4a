"""The environments by name, and the one function that makes them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import VectorEnv

from mtxl_rl.envs.backends.envpool_env import EnvPoolConfig, make_envpool
from mtxl_rl.envs.backends.gymnasium_env import GymnasiumConfig, make_gymnasium
from mtxl_rl.envs.memory_maze.packages import check_packages
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginalConfig
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv, nearest_names
from mtxl_rl.envs.wrappers.chosen_actions import choose_actions


@runtime_checkable
class EnvConfig(Protocol):
    """The config of any environment: a dataclass whose `name` says which.

    Where all episodes last equally long, a property `steps_per_episode` may name the length, and a
    run whose rollouts are shorter spreads its environments over it (`stagger_steps`).
    """

    name: str


class EnvEntry(NamedTuple):
    """An environment's config, and what makes it: `make(config, num_envs=..., seed=...)`.

    What it makes resets itself in ``NEXT_STEP`` mode, and its first ``reset()`` uses the seed.
    """

    config_class: type
    make: Callable[..., VectorEnv[Any, Any, Any]]


def _make_memory_maze(
    config: MemoryMazeConfig, *, num_envs: int, seed: int
) -> VectorEnv[Any, Any, Any]:
    check_packages()
    # Imported here because its packages are an extra, and numba takes a moment.
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


def env_entry(name: str) -> EnvEntry:
    """The environment of a name."""
    if name not in ENVS:
        known = ", ".join(nearest_names(name, ENVS))
        raise ValueError(
            f"env.name={name} is unknown; the known names, nearest first, are {known}."
        )
    return ENVS[name]


def stream_seed(*key: int) -> int:
    """A seed for vector environments, far from that of any other key.

    Most vector environments give environment i the seed plus i. So the runs of seeds 0 and 1 would
    share nearly all environments; with seeds drawn from ``SeedSequence(key)`` two runs of n
    environments share any with a probability of about n / 2^30.
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0] >> 1)


def make_vector_env(config: EnvConfig, *, num_envs: int, seed: int) -> CheckedVectorEnv:
    """The vector environment that a config describes, inside a `CheckedVectorEnv`.

    Args:
        config: The config of the environment.
        num_envs: Number of environments, at least 1.
        seed: Seed of the first reset, at least 0; a later ``reset(seed=...)`` replaces it.
    """
    entry = env_entry(config.name)
    if not isinstance(config, entry.config_class):
        raise ValueError(
            f"env.name={config.name} came with a {type(config).__name__}; give it a "
            f"{entry.config_class.__name__}."
        )
    if num_envs < 1 or seed < 0:
        raise ValueError(
            f"num_envs={num_envs} must be at least 1 and seed={seed} at least 0, e.g. num_envs=16 "
            "seed=0."
        )
    env = entry.make(config, num_envs=num_envs, seed=seed)
    try:
        return CheckedVectorEnv(env)
    except ValueError:
        env.close()
        raise
