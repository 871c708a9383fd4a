"""What every environment here promises, and the wrapper that checks it while it runs.

The promises: Gymnasium's ``NEXT_STEP`` autoreset, spaces that the encoders and heads cover, finite
numbers, rewards in float32 and end flags in bool. The wrapper changes no observation, action or
info.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

Observations = NDArray[Any] | dict[str, NDArray[Any]]
"""A batch of observations: an array, or an array for each key of a Dict space."""

EnvState = dict[str, NDArray[Any] | str | int]
"""What an environment needs to go on exactly where it stood."""

ACTION_MASK_KEY = "action_mask"
"""The key of a Dict observation that says which actions are allowed."""


@runtime_checkable
class SupportsState(Protocol):
    """An environment that can be saved and restored exactly."""

    def get_state(self) -> EnvState:
        """The state, as copies."""
        ...

    def set_state(self, state: EnvState) -> None:
        """Go on from a state of `get_state`."""
        ...


def nearest_names(name: str, known: Iterable[str], *, count: int | None = None) -> list[str]:
    """The known names, the one most like `name` first; `count` of them, or all."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return sorted(known, key=likeness, reverse=True)[:count]


def reset_mask(options: Mapping[str, Any] | None, *, num_envs: int) -> NDArray[np.bool_] | None:
    """The environments that ``options["reset_mask"]`` asks to reset; None is all of them."""
    if options is None or "reset_mask" not in options:
        return None
    mask = np.asarray(options["reset_mask"])
    if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(
            f"options['reset_mask'] has shape {mask.shape}, dtype {mask.dtype} and "
            f"{np.count_nonzero(mask)} true entries; give a bool array of shape ({num_envs},) with "
            "at least one true entry."
        )
    return mask


class CheckedVectorEnv(VectorWrapper[Any, Any, Any, Any, Any]):
    """A vector environment whose promises are checked, at construction and at each step.

    Integer observations are not scanned, so the check costs microseconds even for images.

    Args:
        env: The environment; it must reset itself in ``NEXT_STEP`` mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        _check_autoreset_mode(env)
        _check_observation_space(env.single_observation_space)
        _check_action_space(env.single_action_space)
        leaves = _leaves(env.single_observation_space)
        self._float_keys = [key for key, space in leaves.items() if _is_float(space)]
        self._mask_starts = _mask_starts(env.single_observation_space, env.single_action_space)
        self._num_steps = 0
        # None: no episode is running, because nothing was reset yet or all is closed.
        self._ended: NDArray[np.bool_] | None = None

    @property
    def supports_state(self) -> bool:
        """Whether `get_state` and `set_state` work, for an exact resume."""
        # A vector of processes has the methods whatever its environments can do, and says so.
        return isinstance(self.env, SupportsState) and getattr(self.env, "supports_state", True)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; the rest go on."""
        if self.closed:
            raise ValueError("reset() came after close(): make a new environment.")
        mask = reset_mask(options, num_envs=self.num_envs)
        # Gymnasium declares int, but its vector environments take one seed for each environment as
        # well. It also takes reset_mask out of the caller's options, hence the copy.
        observations, infos = self.env.reset(
            seed=seed,  # type: ignore[arg-type]
            options=None if options is None else dict(options),
        )
        if self._ended is None or mask is None:
            self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            self._ended = self._ended & ~mask
        self._check_observations(observations)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """One step of every environment; a row that ended in the step before is reset instead."""
        if self._ended is None:
            raise ValueError(
                "step() came before the first reset() or after close(): call reset() first."
            )
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._num_steps += 1
        rewards = np.asarray(rewards, dtype=np.float32)
        terminated = np.asarray(terminated, dtype=np.bool_)
        truncated = np.asarray(truncated, dtype=np.bool_)
        self._check_observations(observations)
        self._check_finite(rewards, name="reward")
        ended = terminated | truncated
        self._check_reset_rows(rewards, ended)
        self._ended = ended
        return observations, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close all environments; a second call does nothing."""
        if not self.closed:
            self.env.close(**kwargs)
        self.closed = True
        self._ended = None

    def get_state(self) -> EnvState:
        """The state of the environment, as copies, for `set_state`."""
        return self._stateful().get_state()

    def set_state(self, state: EnvState) -> None:
        """Go on from a state of `get_state`, in place of a reset."""
        self._stateful().set_state(state)
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)

    def _stateful(self) -> SupportsState:
        if not isinstance(self.env, SupportsState):
            raise ValueError(
                f"{self.env} cannot be saved and restored; ask supports_state first, and without "
                "it resume with reset()."
            )
        return self.env

    def _check_observations(self, observations: Observations) -> None:
        for key in self._float_keys:
            if isinstance(observations, dict):
                self._check_finite(observations[key], name=f"observation[{key!r}]")
            else:
                self._check_finite(observations, name="observation")
        if self._mask_starts is not None:
            assert isinstance(observations, dict), type(observations)
            self._check_action_mask(observations[ACTION_MASK_KEY], starts=self._mask_starts)

    def _check_finite(self, values: NDArray[Any], *, name: str) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        index = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name} of environment {index[0]} is {values[tuple(index)]} at step "
            f"{self._num_steps}; it must be a finite number: mend the environment, or clip its "
            "values in a gymnasium.Wrapper."
        )

    def _check_action_mask(self, mask: NDArray[Any], *, starts: NDArray[np.intp]) -> None:
        # One segment for each discrete action; each must allow something.
        allowed = np.logical_or.reduceat(mask != 0, starts, axis=1)
        if allowed.all():
            return
        index = np.argwhere(~allowed)[0]
        raise ValueError(
            f"observation[{ACTION_MASK_KEY!r}] of environment {index[0]} allows nothing for action "
            f"component {index[1]} at step {self._num_steps}; at least one entry must be 1: end "
            "the episode where no action is left."
        )

    def _check_reset_rows(self, rewards: NDArray[np.float32], ended: NDArray[np.bool_]) -> None:
        assert self._ended is not None
        wrong = self._ended & (ended | (rewards != 0))
        if wrong.any():
            raise ValueError(
                f"environment {np.flatnonzero(wrong)[0]} returned a reward or an end at step "
                f"{self._num_steps}, the step after its episode ended; NEXT_STEP autoreset resets "
                "there, with reward 0 and both flags False: mend the environment's autoreset."
            )


def _check_autoreset_mode(env: VectorEnv[Any, Any, Any]) -> None:
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"{env} has metadata['autoreset_mode']={mode}, and only AutoresetMode.NEXT_STEP is "
            "legal, because the final observation is needed; make it with "
            "autoreset_mode=AutoresetMode.NEXT_STEP."
        )


def _leaves(space: Space[Any]) -> dict[str, Space[Any]]:
    """The spaces of a Dict by key; one that is no Dict stands under the empty key."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _is_float(space: Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _counts_from_zero(space: Space[Any]) -> bool:
    """Whether the space is Discrete or a flat MultiDiscrete, and its values are 0, 1, 2, ..."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ndim == 1 and not space.start.any()
    return isinstance(space, spaces.Discrete) and bool(space.start == 0)


def _check_observation_space(space: Space[Any]) -> None:
    for key, leaf in _leaves(space).items():
        covered = isinstance(leaf, spaces.Box | spaces.MultiBinary) or _counts_from_zero(leaf)
        if not covered:
            where = f"observation space {key!r}" if key else "observation space"
            raise ValueError(
                f"{where} is {leaf}; covered are Box, Discrete and flat MultiDiscrete from 0, "
                "MultiBinary, and one Dict of those: return one of them from a "
                "gymnasium.ObservationWrapper."
            )


def _check_action_space(space: Space[Any]) -> None:
    if not (_is_float(space) or _counts_from_zero(space)):
        raise ValueError(
            f"action space is {space}; covered are Discrete and flat MultiDiscrete from 0, and Box "
            "of a float dtype: take one of them in a gymnasium.ActionWrapper."
        )


def _mask_starts(observation: Space[Any], action: Space[Any]) -> NDArray[np.intp] | None:
    """Where each discrete action's entries begin in the action mask; None without a mask."""
    mask = _leaves(observation).get(ACTION_MASK_KEY)
    if mask is None:
        return None
    sizes: list[int] = []
    if isinstance(action, spaces.Discrete):
        sizes = [int(action.n)]
    elif isinstance(action, spaces.MultiDiscrete):
        sizes = action.nvec.tolist()
    is_flag = isinstance(mask, spaces.MultiBinary) or mask.dtype in (np.int8, np.bool_)
    if not sizes or mask.shape != (sum(sizes),) or not is_flag:
        raise ValueError(
            f"observation space {ACTION_MASK_KEY!r} is {mask} while the action space is {action}; "
            "a mask is MultiBinary or an int8 or bool Box with one entry for each discrete "
            "action: reshape or rename it in a gymnasium.ObservationWrapper."
        )
    return np.cumsum([0, *sizes[:-1]])
