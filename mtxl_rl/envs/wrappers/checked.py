"""The contract of every environment of the library, and the wrapper that checks it at each step.

The contract: Gymnasium's ``NEXT_STEP`` autoreset, spaces that the encoders and heads support,
finite numbers, float32 rewards and bool end flags. The wrapper changes no observation, action or
info.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from mtxl_rl.env_keys import ACTION_MASK_KEY, TEACHER_KEY, TRAINING_REWARD_KEY
from mtxl_rl.envs.space_json import space_line

if TYPE_CHECKING:
    AnyVectorWrapper = VectorWrapper[Any, Any, Any, Any, Any]
else:
    AnyVectorWrapper = (
        VectorWrapper  # It is generic since Gymnasium 1.4, and RLlib needs an older one.
    )

Observations = NDArray[Any] | dict[str, NDArray[Any]]
"""A batch of observations: an array, or an array for each key of a Dict space."""

EnvState = dict[str, NDArray[Any] | str | int]
"""Everything an environment needs to continue exactly."""

LARGEST = 1e15
"""Largest observation and reward: float32 overflows in the squares of numbers above 1e19."""


@runtime_checkable
class SupportsState(Protocol):
    """An environment that can be saved and restored exactly."""

    def get_state(self) -> EnvState:
        """Return copies of the state."""
        ...

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`."""
        ...


def supports_state(env: object) -> TypeGuard[SupportsState]:
    """Whether a vector environment can be saved."""
    # ProcessVectorEnv always has the methods; its attribute reports its environments' support.
    return isinstance(env, SupportsState) and bool(getattr(env, "supports_state", True))


def reset_mask(options: Mapping[str, Any] | None, *, num_envs: int) -> NDArray[np.bool_] | None:
    """Return ``options["reset_mask"]``, the environments to reset; None means all of them."""
    if options is None or "reset_mask" not in options:
        return None
    mask = np.asarray(options["reset_mask"])
    if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(
            f"options['reset_mask'] has shape {mask.shape}, dtype {mask.dtype} and "
            f"{np.count_nonzero(mask)} true entries; pass a bool array of shape ({num_envs},) with "
            "at least one true entry."
        )
    return mask


class CheckedVectorEnv(AnyVectorWrapper):
    """A vector environment whose contract is checked at construction and at each step.

    Integer observations are not scanned, so the checks take microseconds even for images.

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
        # None before the first reset and after close, when no episode is running.
        self._is_reset_row: NDArray[np.bool_] | None = None

    @property
    def supports_state(self) -> bool:
        """Whether `get_state` and `set_state` work, for an exact resume."""
        return supports_state(self.env)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; the rest continue."""
        if self.closed:
            raise ValueError("reset() came after close(): make a new environment.")
        mask = reset_mask(options, num_envs=self.num_envs)
        # Gymnasium declares int, but its vector environments also accept one seed per environment.
        # It removes reset_mask from the caller's options, hence the copy.
        observations, infos = self.env.reset(
            seed=seed,  # type: ignore[arg-type]
            options=None if options is None else dict(options),
        )
        if self._is_reset_row is None or mask is None:
            self._is_reset_row = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            self._is_reset_row = self._is_reset_row & ~mask
        self._check_observations(observations)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """Step every environment; a row whose episode ended in the last step is reset instead."""
        if self._is_reset_row is None:
            raise ValueError(
                "step() came before the first reset() or after close(): call reset() first."
            )
        self._num_steps += 1
        try:
            observations, rewards, terminated, truncated, infos = self.env.step(actions)
        except Exception as error:
            error.add_note(f"in step {self._num_steps} of the environments")
            raise
        with np.errstate(over="ignore"):  # The check below reports it.
            rewards = np.asarray(rewards, dtype=np.float32)
        terminated = np.asarray(terminated, dtype=np.bool_)
        truncated = np.asarray(truncated, dtype=np.bool_)
        self._check_observations(observations)
        self._check_finite(rewards, name="reward")
        for key in (TRAINING_REWARD_KEY, TEACHER_KEY):
            if key in infos:
                self._check_finite(infos[key], name=f"info[{key!r}]")
        is_end = terminated | truncated
        self._check_reset_rows(rewards, is_end)
        self._is_reset_row = is_end
        return observations, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close all environments; a second call does nothing."""
        if not self.closed:
            self.env.close(**kwargs)
        self.closed = True
        self._is_reset_row = None

    def get_state(self) -> EnvState:
        """Return copies of the environment's state, for `set_state`."""
        return self._stateful().get_state()

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`; no reset is needed before the next step."""
        self._stateful().set_state(state)
        self._is_reset_row = np.zeros(self.num_envs, dtype=np.bool_)

    def _stateful(self) -> SupportsState:
        if supports_state(self.env):
            return self.env
        raise ValueError(
            f"{self.env} cannot be saved and restored; check supports_state first, and call "
            "reset() to resume where it is False."
        )

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
        # float16 does not reach LARGEST.
        legal = np.abs(values, dtype=np.result_type(values, np.float32)) <= LARGEST
        if legal.all():
            return
        index = np.argwhere(~legal)[0]
        raise ValueError(
            f"{name} of environment {index[0]} is {values[tuple(index)]} at step "
            f"{self._num_steps}; it must be a finite number in -{LARGEST:g} .. {LARGEST:g}: fix "
            "the environment, or clip its values in a gymnasium.Wrapper."
        )

    def _check_action_mask(self, mask: NDArray[Any], *, starts: NDArray[np.intp]) -> None:
        # One slice of the mask for each discrete action; each must allow an action.
        allowed = np.logical_or.reduceat(mask != 0, starts, axis=1)
        if allowed.all():
            return
        index = np.argwhere(~allowed)[0]
        raise ValueError(
            f"observation[{ACTION_MASK_KEY!r}] of environment {index[0]} allows nothing for action "
            f"component {index[1]} at step {self._num_steps}; at least one entry must be 1: end "
            "the episode when no action is left."
        )

    def _check_reset_rows(self, rewards: NDArray[np.float32], is_end: NDArray[np.bool_]) -> None:
        assert self._is_reset_row is not None
        wrong = self._is_reset_row & (is_end | (rewards != 0))
        if wrong.any():
            raise ValueError(
                f"environment {np.flatnonzero(wrong)[0]} returned a reward or an end at step "
                f"{self._num_steps}, the step after its episode ended; NEXT_STEP autoreset resets "
                "there, with reward 0 and both flags False: fix the environment's autoreset."
            )


def _check_autoreset_mode(env: VectorEnv[Any, Any, Any]) -> None:
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"{env} has metadata['autoreset_mode']={mode}, and only AutoresetMode.NEXT_STEP is "
            "legal, because it returns the final observation; create the environment with "
            "autoreset_mode=AutoresetMode.NEXT_STEP."
        )


def _leaves(space: Space[Any]) -> dict[str, Space[Any]]:
    """Return a Dict's spaces by key; any other space under the empty key."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _is_float(space: Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _counts_from_zero(space: Space[Any]) -> bool:
    """Whether the space is Discrete or a flat MultiDiscrete, and its values are 0, 1, 2, ..."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ndim == 1 and not space.start.any()
    return isinstance(space, spaces.Discrete) and bool(space.start == 0)


def _check_observation_space(space: Space[Any]) -> None:
    leaves = _leaves(space)
    if not leaves:
        raise ValueError(
            "observation space is a Dict without entries; add what the agent observes in a "
            "gymnasium.ObservationWrapper."
        )
    for key, leaf in leaves.items():
        where = f"observation space {key!r}" if leaf is not space else "observation space"
        if 0 in (leaf.shape or ()):
            raise ValueError(
                f"{where} is {space_line(leaf)}, which holds no number; remove it in a "
                "gymnasium.ObservationWrapper."
            )
        is_box = isinstance(leaf, spaces.Box | spaces.MultiBinary)
        if not is_box and not _counts_from_zero(leaf):
            raise ValueError(
                f"{where} is {space_line(leaf)}; supported are Box, Discrete and flat "
                "MultiDiscrete from 0, MultiBinary, and one Dict of those, in single environments "
                "also Text and one Tuple: return one of them from a gymnasium.ObservationWrapper."
            )


def _check_action_space(space: Space[Any]) -> None:
    if not (_is_float(space) or _counts_from_zero(space)) or 0 in (space.shape or ()):
        raise ValueError(
            f"action space is {space_line(space)}; supported are Discrete and flat MultiDiscrete "
            "from 0, and Box of a float dtype with at least one number: convert from one of them "
            "in a gymnasium.ActionWrapper."
        )


def _mask_starts(observation: Space[Any], action: Space[Any]) -> NDArray[np.intp] | None:
    """Return where each discrete action's entries begin in the action mask; None without one."""
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
            f"observation space {ACTION_MASK_KEY!r} is {space_line(mask)} while the action space "
            f"is {space_line(action)}; a mask is MultiBinary or an int8 or bool Box with one entry "
            "for each discrete action: reshape or rename it in a gymnasium.ObservationWrapper."
        )
    return np.cumsum([0, *sizes[:-1]])
