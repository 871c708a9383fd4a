"""Environments that Python code passes: an env, a vector env, or a function that makes an env."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from mtxl_rl.envs.backends.covered_spaces import cover
from mtxl_rl.envs.backends.gymnasium_env import SeededFirstReset
from mtxl_rl.envs.backends.named_env import NamedEnv

CustomEnv = (
    gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[[], gymnasium.Env[Any, Any]]
)


@dataclass(kw_only=True, slots=True)
class CustomEnvConfig:
    """A run's options of an environment that Python code passed."""

    name: str = "Custom"
    """The environment's name in the registry."""
    description: str = ""
    """The id or class of the environment, or the function that made it."""


def is_factory(env: CustomEnv) -> bool:
    """Whether `env` makes environments, as a class or a function does."""
    return not isinstance(env, gymnasium.Env | VectorEnv)


def default_num_envs(env: CustomEnv) -> int | None:
    """Environments in an object: those of a vector, or 1; None for a factory, which makes any."""
    if isinstance(env, VectorEnv):
        return env.num_envs
    return None if is_factory(env) else 1


def describe_custom(env: CustomEnv) -> str:
    """Return the environment's id or class, or the function's name."""
    if isinstance(env, gymnasium.Env | VectorEnv):
        return env.spec.id if env.spec is not None else type(env.unwrapped).__qualname__
    if not callable(env):
        raise ValueError(
            f"{env!r} is a {type(env).__name__}; pass a task's name, a gymnasium.Env, a "
            "gymnasium.vector.VectorEnv, or a function that makes a gymnasium.Env"
        )
    return str(getattr(env, "__qualname__", type(env).__qualname__))


def make_custom(env: CustomEnv, *, num_envs: int, seed: int) -> VectorEnv[Any, Any, Any]:
    """Return a vector environment with ``NEXT_STEP`` autoreset.

    Environments of a factory are stepped one after another in this process. Closing the vector
    closes them, and leaves an object that the caller passed open.

    Args:
        env: The environment, or a function without arguments that returns one.
        num_envs: Number of environments; for an object, as many as it has.
        seed: Environment i is seeded with seed + i at the first reset.
    """
    legal = default_num_envs(env)
    if legal is not None and num_envs != legal:
        raise ValueError(
            f"num_envs={num_envs} does not fit {env}, which is {legal} environment(s); pass "
            f"num_envs={legal}, or a function that makes an environment, as in lambda: MyEnv()"
        )
    if isinstance(env, VectorEnv):
        return SeededFirstReset(env, seed=seed, closes=False)
    makers = [partial(_make_one, env, index) for index in range(num_envs)]
    vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return SeededFirstReset(vector, seed=seed, closes=is_factory(env))


def refuse_to_make(config: CustomEnvConfig, **_: object) -> NoReturn:
    """Raise the error for a custom environment that a command line cannot make."""
    raise ValueError(
        f"this agent was trained in Python on {config.description}, which a file cannot hold; "
        "pass the environment again: mtxl_rl.train(env, resume=PATH) or "
        "mtxl_rl.Agent.load(PATH).evaluate(env)"
    )


def _make_one(env: CustomEnv, index: int) -> gymnasium.Env[Any, Any]:
    instance = env if isinstance(env, gymnasium.Env) else env()  # type: ignore[operator]
    if not isinstance(instance, gymnasium.Env):
        raise ValueError(
            f"{env} returned a {type(instance).__name__}, and only a gymnasium.Env is legal; pass "
            "a vector environment itself, not a function that makes it"
        )
    return NamedEnv(cover(instance), index=index)
