"""EnvPool's environments, with the behaviour of Gymnasium's vector environments.

EnvPool runs its environments in C++ threads: its MiniGrid-Memory steps 20 to 40 times faster than
the Python one. This module corrects overlapping seeds, ``reset(seed=...)`` without effect, and
partial resets that return fewer rows. It also corrects single spaces in place of batched ones,
dtypes that differ from the spaces, infos without masks, and MiniGrid's cells and missions as bytes.
"""

import functools
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mtxl_rl.envs.backends.covered_spaces import MISSION_SPACE, cells_space, word_numbers
from mtxl_rl.envs.cores import num_cores_per_process
from mtxl_rl.envs.names import nearest_names
from mtxl_rl.envs.seeds import seed_per_env
from mtxl_rl.envs.wrappers.checked import Observations, reset_mask
from mtxl_rl.envs.wrappers.chosen_actions import choose_actions

# Arguments that this module sets, or that would change the order of the rows.
_RESERVED = {"num_envs", "batch_size", "seed", "env_seed", "num_threads", "env_type"}
_MAX_SEED = 2**31 - 1


@dataclass(kw_only=True, slots=True)
class EnvPoolConfig:
    """Options of ``env=EnvPool``."""

    name: str = "EnvPool"
    """The environment's name in the registry."""
    id: str = ""
    """EnvPool's id, e.g. MiniGrid-MemoryS13-v0."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `envpool.make`, e.g. stack_num of an Atari game."""
    num_threads: int = 0
    """Threads that step the environments, at least 0; 0: one for each core."""
    actions: list[int] = field(default_factory=list)
    """The discrete actions that the agent may take; empty: all."""

    def __post_init__(self) -> None:
        if self.num_threads < 0:
            raise ValueError(
                f"env.num_threads={self.num_threads} must be 0 (one for each core) or more, e.g. "
                "env.num_threads=2."
            )
        reserved = _RESERVED & set(self.kwargs)
        if reserved:
            raise ValueError(
                f"env.kwargs has {sorted(reserved)}, which env.num_threads, num_envs and seed "
                "set; remove them from env.kwargs."
            )


def env_seeds(seed: int, *, num_envs: int) -> list[int]:
    """Return a seed for each environment; environment i's does not depend on `num_envs`.

    EnvPool gives environment i the seed ``seed + i``, so that the runs of seeds 0 and 1 with 64
    environments share 63 of them. These seeds are drawn from ``SeedSequence([seed])`` instead. They
    are distinct within a batch; EnvPool's seeds have 31 bits, so two runs of n environments share
    one with a probability of about n^2 / 2^31 (2e-6 for 64).
    """
    # Draw twice as many as needed, so that enough remain after repeated ones are dropped.
    words = np.random.SeedSequence([seed]).generate_state(2 * num_envs) >> 1
    return list(dict.fromkeys(words.tolist()))[:num_envs]


class EnvPoolVectorEnv(VectorEnv[Any, NDArray[Any], NDArray[Any]]):
    """A pool of environments of one EnvPool id.

    EnvPool takes seeds only at construction, so ``reset(seed=...)`` creates a new pool. EnvPool
    reports an episode that terminates in its last allowed step as truncated.

    Args:
        env_id: EnvPool's id.
        num_envs: Number of environments.
        seed: One int for `env_seeds`, or EnvPool's seed for each environment.
        num_threads: Threads that step the environments; 0: one for each core.
        kwargs: Arguments of `envpool.make`.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int,
        seed: int | Sequence[int],
        num_threads: int = 0,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.num_envs = num_envs
        self._env_id = env_id
        self._kwargs = {**(kwargs or {}), "num_envs": num_envs}
        self._kwargs["num_threads"] = num_threads or num_cores_per_process()
        self._seeds = self._seed_list(seed)
        self._pool = _make_pool(env_id, seeds=self._seeds, kwargs=self._kwargs)
        self._observations: Observations | None = None
        self.metadata = dict(self._pool.metadata)
        self._is_minigrid = env_id.startswith(("MiniGrid-", "BabyAI-"))
        self.single_observation_space: Space[Any] = (
            _minigrid_space(self._pool.observation_space)
            if self._is_minigrid
            else self._pool.observation_space
        )
        self.single_action_space: Space[Any] = self._pool.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all or ``options["reset_mask"]``; a seed creates a new pool."""
        mask = reset_mask(options, num_envs=self.num_envs)
        if mask is not None and (seed is not None or self._observations is None):
            raise ValueError(
                "reset() got a reset_mask with a seed or before the first reset; EnvPool seeds "
                "and starts all environments together: call reset() without a mask."
            )
        if seed is not None:
            self._reseed(self._seed_list(seed))
        values, infos = self._pool.reset(options=options)
        observations = self._covered(values)
        if mask is not None:
            assert self._observations is not None
            observations = _with_rows(self._observations, observations, mask)
        self._observations = observations
        return observations, _clean_infos(infos, mask, num_envs=self.num_envs)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every environment; a row whose episode ended in the last step is reset instead."""
        values, rewards, terminated, truncated, infos = self._pool.step(np.asarray(actions))
        self._observations = self._covered(values)
        rewards = np.asarray(rewards, dtype=np.float32)
        infos = _clean_infos(infos, None, num_envs=self.num_envs)
        return self._observations, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Delete the pool, which ends its threads."""
        self._pool = None

    def _covered(self, values: Any) -> Any:  # noqa: ANN401
        """Convert EnvPool's observations to elements of the observation space."""
        if self._is_minigrid:
            values = {
                **values,
                "image": values["image"].reshape(len(values["image"]), -1),
                "mission": np.stack([_mission_words(row.tobytes()) for row in values["mission"]]),
            }
        return _as_space(values, self.observation_space)

    def _reseed(self, seeds: list[int]) -> None:
        # An unused pool with these seeds equals a new one.
        if seeds == self._seeds and self._observations is None:
            return
        self._pool = None
        self._pool = _make_pool(self._env_id, seeds=seeds, kwargs=self._kwargs)
        self._seeds = seeds

    def _seed_list(self, seed: int | Sequence[int]) -> list[int]:
        if isinstance(seed, int | np.integer):
            return env_seeds(int(seed), num_envs=self.num_envs)
        return seed_per_env(seed, num_envs=self.num_envs, largest=_MAX_SEED)


def make_envpool(
    config: EnvPoolConfig, *, num_envs: int, seed: int
) -> VectorEnv[Any, NDArray[Any], NDArray[Any]]:
    """Create the pool of a config."""
    env = EnvPoolVectorEnv(
        config.id,
        num_envs=num_envs,
        seed=seed,
        num_threads=config.num_threads,
        kwargs=dict(config.kwargs),
    )
    return choose_actions(env, config.actions)


def _import_envpool() -> ModuleType:
    try:
        import envpool
    except Exception as error:  # a broken wheel raises what it likes
        raise ImportError(
            f"env=EnvPool needs the package envpool, which cannot be imported on {sys.platform} "
            f"({error}); on Linux install it with pip install envpool, elsewhere use env=Gymnasium."
        ) from error
    module: ModuleType = envpool
    return module


def _make_pool(env_id: str, *, seeds: list[int], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    if not env_id:
        raise ValueError("env=EnvPool needs env.id=..., e.g. env.id=MiniGrid-MemoryS13-v0.")
    envpool = _import_envpool()
    with warnings.catch_warnings():
        # EnvPool passes float64 bounds to float32 spaces.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        # Check first, because a pool may open windows or files.
        _check_spec(_make_spec(envpool, env_id, kwargs=kwargs), env_id=env_id)
        pool = envpool.make(env_id, env_type="gymnasium", seed=seeds, **kwargs)
        # A pool creates its spaces at their first use: do that while the warning is off.
        _ = pool.observation_space, pool.action_space
    return pool


def _make_spec(envpool: ModuleType, env_id: str, *, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return EnvPool's specification of an environment, or raise with the legal ids or kwargs."""
    known = envpool.list_all_envs()
    if env_id not in known:
        nearest = ", ".join(nearest_names(env_id, known, count=5))
        raise ValueError(
            f"env.id={env_id} is not one of EnvPool's {len(known)} ids; similar ids are {nearest}."
        )
    try:
        return envpool.make_spec(env_id, **kwargs)
    except ImportError as error:
        raise ImportError(f"EnvPool cannot load env.id={env_id}: {error}") from error
    except TypeError as error:
        legal = sorted(set(envpool.make_spec(env_id).config._fields) - _RESERVED)
        raise ValueError(
            f"env.kwargs does not fit env.id={env_id} ({error}); it may have {', '.join(legal)}."
        ) from error


def _check_spec(spec: Any, *, env_id: str) -> None:  # noqa: ANN401
    num_players = spec.config.max_num_players
    if num_players > 1:
        raise ValueError(
            f"env.id={env_id} is a game of {num_players} players; only environments with one "
            "agent are supported: choose another env.id."
        )
    action = spec.gymnasium_action_space
    # EnvPool has C++'s smallest positive and largest double where the author set no bounds.
    if isinstance(action, spaces.Box) and bool((action.low == np.finfo(np.float64).tiny).any()):
        raise ValueError(
            f"env.id={env_id} declares actions from {action.low.min()} to {action.high.max()}, "
            "which no agent can learn; ViZDoom has discrete actions with "
            "env.kwargs.use_combined_action=true."
        )


def _minigrid_space(space: spaces.Dict) -> spaces.Dict:
    """Return MiniGrid's space as `covered_spaces` converts it for the Python package."""
    cells = cells_space(space["image"].shape or ())
    return spaces.Dict({**space.spaces, "image": cells, "mission": MISSION_SPACE})


@functools.lru_cache(maxsize=65_536)
def _mission_words(mission: bytes) -> NDArray[np.int64]:
    return word_numbers(mission.rstrip(b"\0").decode())


def _as_space(value: Any, space: Space[Any]) -> Any:  # noqa: ANN401
    """Cast the observation to its space's dtypes; EnvPool has int32 for Discrete, for example."""
    if isinstance(space, spaces.Dict):
        return {key: _as_space(value[key], leaf) for key, leaf in space.spaces.items()}
    return np.asarray(value, dtype=space.dtype)


def _with_rows(old: Any, rows: Any, mask: NDArray[np.bool_]) -> Any:  # noqa: ANN401
    """Return a copy of `old` in which the masked rows are `rows`."""
    if isinstance(old, dict):
        return {key: _with_rows(old[key], rows[key], mask) for key in old}
    new = old.copy()
    new[mask] = rows
    return new


def _clean_infos(
    infos: Mapping[str, Any], mask: NDArray[np.bool_] | None, *, num_envs: int
) -> dict[str, Any]:
    """Return Gymnasium's infos: an array for each key, and under ``_key`` which rows have it.

    EnvPool's numbering of environments and players is dropped.
    """
    present = np.ones(num_envs, dtype=np.bool_) if mask is None else mask
    clean: dict[str, Any] = {}
    for key, value in infos.items():
        if key in ("env_id", "players"):
            continue
        if isinstance(value, dict):
            clean[key] = _clean_infos(value, mask, num_envs=num_envs)
        elif mask is None:
            clean[key] = value
        else:
            empty = np.zeros((num_envs, *value.shape[1:]), dtype=value.dtype)
            clean[key] = _with_rows(empty, value, mask)
        clean[f"_{key}"] = present.copy()
    return clean
