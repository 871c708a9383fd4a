"""Environments registered with Gymnasium, as vector environments."""

import contextlib
import importlib
import inspect
import io
import itertools
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from mtxl_rl.envs.backends.covered_spaces import cover
from mtxl_rl.envs.backends.named_env import NamedEnv
from mtxl_rl.envs.names import nearest_names
from mtxl_rl.envs.wrappers.checked import AnyVectorWrapper, EnvState, supports_state


class Package(NamedTuple):
    """A package that registers the ids that begin with `prefix`."""

    prefix: str
    module: str
    """The module that registers them when it is imported."""
    extra: str
    """The extra of mtxl_rl that installs it."""


PACKAGES = (
    Package("popgym-", "popgym", "popgym"),
    Package("MiniGrid-", "minigrid", "minigrid"),
    Package("BabyAI-", "minigrid", "minigrid"),
    Package("MiniWorld-", "miniworld", "miniworld"),
    Package("Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
    Package("ALE/", "ale_py", "atari"),
    Package("bsuite/", "shimmy", "bsuite"),
    Package("dm_control/", "shimmy", "dm-control"),
)


@dataclass(kw_only=True, slots=True)
class GymnasiumConfig:
    """Options of ``env=Gymnasium``."""

    name: str = "Gymnasium"
    """The environment's name in the registry."""
    id: str = ""
    """Gymnasium's id with its version, e.g. CartPole-v1; module:id imports that module first.

    The modules of popgym, minigrid, miniworld, vizdoom, ale_py and shimmy are found by the id."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make_vec`, which passes the environment's own on to it."""
    actions: list[int] = field(default_factory=list)
    """The discrete actions that the agent may take; empty: all."""

    def __post_init__(self) -> None:
        reserved = {"num_envs", "id"} & set(self.kwargs)
        if reserved:
            raise ValueError(
                f"env.kwargs has {sorted(reserved)}, which have options of their own; remove them "
                "from env.kwargs and set num_envs= or env.id= instead."
            )


def make_gymnasium(
    env_id: str, *, num_envs: int, seed: int, kwargs: dict[str, Any] | None = None
) -> VectorEnv[Any, Any, Any]:
    """Create a vector environment of one Gymnasium id, with ``NEXT_STEP`` autoreset.

    The environments run one after another in this process unless `kwargs` has a
    `vectorization_mode`. An id that has only a vector entry point is created with that.

    Args:
        env_id: Gymnasium's id.
        num_envs: Number of environments.
        seed: Environment i is seeded with seed + i at the first reset, as Gymnasium does; seeds
            closer than `num_envs` share environments.
        kwargs: Arguments of `gymnasium.make_vec`.
    """
    spec = _spec(env_id)
    make_kwargs = dict(kwargs or {})
    default_mode = "vector_entry_point" if spec.entry_point is None else "sync"
    make_kwargs.setdefault("vectorization_mode", default_mode)
    if make_kwargs["vectorization_mode"] != "vector_entry_point":
        vector_kwargs = make_kwargs.get("vector_kwargs", {})
        make_kwargs["vector_kwargs"] = {
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            **vector_kwargs,
        }
        names = [_name_envs()] if make_kwargs["vectorization_mode"] == "sync" else []
        make_kwargs["wrappers"] = [*make_kwargs.get("wrappers", []), cover, *names]
    try:
        env = gymnasium.make_vec(spec.id, num_envs=num_envs, **make_kwargs)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ImportError(
            f"env.id={env_id} needs a package that is not installed: {error}"
        ) from error
    except (TypeError, gymnasium.error.Error) as error:
        if not _gymnasium_raised(error):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"env.kwargs={kwargs or {}} does not fit env.id={env_id} ({reason}); "
            f"{_legal_kwargs(spec)}."
        ) from error
    return SeededFirstReset(env, seed=seed)


def _name_envs() -> Callable[[gymnasium.Env[Any, Any]], NamedEnv]:
    """A wrapper that numbers the environments in the order in which they are made."""
    indices = itertools.count()
    return lambda env: NamedEnv(env, index=next(indices))


def _spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    if not env_id:
        raise ValueError("env=Gymnasium needs env.id=..., e.g. env.id=CartPole-v1.")
    module, _, name = env_id.rpartition(":")
    package = next((entry for entry in PACKAGES if name.startswith(entry.prefix)), None)
    if package is not None and name not in gymnasium.registry:
        _import_registering(module or package.module, env_id=env_id, extra=package.extra)
    elif module:
        _import_registering(module, env_id=env_id, extra=None)
    spec = gymnasium.registry.get(name)
    if spec is None:
        nearest = ", ".join(nearest_names(name, gymnasium.registry, count=5))
        raise ValueError(
            f"env.id={env_id} is not registered with Gymnasium; similar ids are {nearest}. If a "
            "module registers it, name that module: env.id=module:id."
        )
    return spec


def _gymnasium_raised(error: Exception) -> bool:
    """Whether Gymnasium refused to make the environment; otherwise its own code failed."""
    cause = error.__cause__ or error  # Gymnasium chains a TypeError of the environment.
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("gymnasium.")


def _legal_kwargs(spec: gymnasium.envs.registration.EnvSpec) -> str:
    entry_point = spec.entry_point or spec.vector_entry_point
    assert entry_point is not None
    if isinstance(entry_point, str):
        entry_point = gymnasium.envs.registration.load_env_creator(entry_point)
    names = [name for name in inspect.signature(entry_point).parameters if name != "num_envs"]
    if not names:
        return "it takes none"
    return f"it may have {', '.join(names)}, as in +env.kwargs.{names[0]}=VALUE"


def _import_registering(module: str, *, env_id: str, extra: str | None) -> None:
    """Import a module that registers ids, and suppress what it prints."""
    try:
        if module == "miniworld" and not os.environ.get("DISPLAY"):
            importlib.import_module("pyglet").options["headless"] = True
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    except ImportError as error:
        if extra is None and not module.startswith(error.name or module):
            raise  # The module exists, and imports something that does not.
        pip_line = f"pip install 'mtxl_rl[{extra}]'" if extra else "pip, if a package has it"
        raise ImportError(
            f"env.id={env_id} needs the module {module}, which cannot be imported ({error}); "
            f"install it with {pip_line}."
        ) from error


class SeededFirstReset(AnyVectorWrapper):
    """Seeds the first reset, because Gymnasium's environments take no seed at construction.

    Args:
        env: The environment.
        seed: Seed of the first reset.
        closes: Whether closing this wrapper closes the environment.
    """

    closed = False  # Its own flag: Gymnasium's wrappers share the environment's.

    def __init__(self, env: VectorEnv[Any, Any, Any], *, seed: int, closes: bool = True) -> None:
        super().__init__(env)
        self._seed: int | None = seed
        self._closes = closes

    def close(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close the environment, unless it belongs to the caller."""
        if self._closes:
            super().close(**kwargs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset; a first call without a seed uses the seed from construction."""
        first_seed, self._seed = self._seed, None
        return self.env.reset(
            seed=first_seed if seed is None else seed,  # type: ignore[arg-type]
            options=options,
        )

    @property
    def supports_state(self) -> bool:
        """Whether `get_state` and `set_state` work, for an exact resume."""
        return supports_state(self.env)

    def get_state(self) -> EnvState:
        """Return the environment's state."""
        return self.env.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`; no reset is needed before the next step."""
        self.env.set_state(state)  # type: ignore[attr-defined]
