"""The base class of the built-in tasks: autoreset, seeds, state, success and description.

A task is a config dataclass with a `describe` method, and a `VectorTask` that computes the rules of
many environments in NumPy arrays whose first axis is the environment.
"""

import abc
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mtxl_rl.envs.seeds import seed_per_env
from mtxl_rl.envs.streams import RandomStreams, Rows
from mtxl_rl.envs.tasks.canvas import Image
from mtxl_rl.envs.wrappers.checked import EnvState, Observations, reset_mask

Flags = NDArray[np.bool_]


class TaskDescription(NamedTuple):
    """The demands of a task on an agent."""

    horizon: int
    """Steps of the longest episode."""
    reward_range: tuple[float, float]
    """Least and greatest return of an episode."""
    remembered: str
    """Facts that must be remembered."""
    memory_window: int
    """The shortest attention window that suffices for a perfect agent, in steps. With a smaller
    receptive field an agent needs a long-term memory."""

    def __str__(self) -> str:
        """One line."""
        low, high = self.reward_range
        return (
            f"horizon {self.horizon:,}, return {low:g} .. {high:g}, remember {self.remembered}, "
            f"memory needed if the window is under {self.memory_window:,}"
        )


@runtime_checkable
class TaskConfig(Protocol):
    """The config of a built-in task: a dataclass that can describe itself."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    name: str

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        ...


class Outcome(NamedTuple):
    """Results of one step of the rules, each [B]."""

    rewards: NDArray[Any]
    terminated: Flags
    truncated: Flags
    success: NDArray[Any]
    """Share of the episode that was solved, 0 to 1. It is read where the episode ends."""


class VectorTask(VectorEnv[Observations, NDArray[Any], NDArray[Any]], abc.ABC):
    """Many environments of one task in this process, with ``NEXT_STEP`` autoreset.

    A subclass lists the arrays of its state in `state_names`, creates them in its constructor with
    the environment as first axis, and implements the rules in `_start`, `_advance` and `_observe`.
    `_draw` makes the pictures of `render`. Oracles, probes and tests may read the arrays.

    Each environment has its own random stream (`RandomStreams`): its episodes depend only on the
    seed, its index and its actions.

    ``infos["success"]``, from 0 to 1, is present in steps where an episode ends.

    Args:
        config: The task's config.
        num_envs: Number of environments, B, at least 1.
        seed: Seed of the streams; ``reset(seed=...)`` replaces it.
        observation_space: Space of one environment's observation.
        num_actions: Actions are 0 .. num_actions - 1.
    """

    metadata = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 4,
    }
    render_mode: str | None = None
    state_names: ClassVar[tuple[str, ...]]
    options_outside_state: ClassVar[tuple[str, ...]] = ()
    """Options on which a saved state does not depend."""
    observation_names: ClassVar[tuple[str, ...]] = ()
    """Names of a vector observation's first components, for the memory timeline."""

    def __init__(
        self,
        config: TaskConfig,
        *,
        num_envs: int,
        seed: int | Sequence[int],
        observation_space: Space[Any],
        num_actions: int,
    ) -> None:
        self.config = config
        self.num_envs = num_envs
        self.num_actions = num_actions
        self.single_observation_space = observation_space
        self.single_action_space = spaces.Discrete(num_actions)
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.all_rows = np.arange(num_envs)
        self.streams = self._streams(seed)
        self.is_reset_row = np.ones(num_envs, dtype=np.bool_)
        """True where the episode has ended: the next step ignores the action and resets."""
        self.step_index = np.zeros(num_envs, dtype=np.int64)
        """Steps taken in the episode."""

    @abc.abstractmethod
    def _start(self, rows: Rows) -> None:
        """Begin an episode in each of these rows, which are distinct."""

    @abc.abstractmethod
    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        """Apply the rules for one step; results of rows that are not `live` are discarded.

        `step_index` counts the steps before this one.
        """

    @abc.abstractmethod
    def _observe(self) -> Observations:
        """Return the observations in new arrays."""

    @abc.abstractmethod
    def _draw(self, row: int) -> Image:
        """Return a picture [H, W, 3] of one environment's state, hidden parts included."""

    def _info(self) -> dict[str, Any]:
        """Return what the info of every step and reset has; a task may override this."""
        return {}

    def render_row(self, row: int) -> Image:
        """Return a picture of one environment, in any render mode."""
        return self._draw(row)

    def render(self) -> tuple[Image, ...] | None:
        """Return a picture of each environment, or None unless `render_mode` is rgb_array."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self._draw(row) for row in range(self.num_envs))

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start episodes in all rows or in ``options["reset_mask"]``; a seed restarts streams."""
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise ValueError(
                f"reset options {sorted(unknown)} are unknown; {self.config.name} accepts only "
                "reset_mask: remove the others."
            )
        mask = reset_mask(options, num_envs=self.num_envs)
        if seed is not None:
            self.streams = self._streams(seed)
        self._begin(self.all_rows if mask is None else np.flatnonzero(mask))
        return self._observe(), self._info()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float32], Flags, Flags, dict[str, Any]]:
        """Step every environment; a row whose episode ended in the last step is reset instead."""
        self._check_actions(actions)
        live = ~self.is_reset_row
        outcome = self._advance(actions, live)
        self.step_index += live
        rewards = np.where(live, outcome.rewards, 0).astype(np.float32)
        terminated, truncated = outcome.terminated & live, outcome.truncated & live
        if not live.all():
            self._begin(np.flatnonzero(self.is_reset_row))
        self.is_reset_row = terminated | truncated
        infos: dict[str, Any] = {}
        if self.is_reset_row.any():
            success = np.where(self.is_reset_row, outcome.success, 0).astype(np.float32)
            infos = {"success": success, "_success": self.is_reset_row.copy()}
        return self._observe(), rewards, terminated, truncated, infos | self._info()

    def get_state(self) -> EnvState:
        """Return copies of the whole state, including the random streams."""
        state: EnvState = {name: getattr(self, name).copy() for name in self._all_state_names()}
        # int64 because checkpoints hold torch tensors, and torch barely supports uint64.
        state["streams"] = self.streams.state.copy().view(np.int64)
        state["settings"] = self._settings()
        return state

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state` of the same task with the same settings."""
        if state["settings"] != self._settings():
            raise ValueError(
                f"the saved task has the settings {state['settings']} and this one has "
                f"{self._settings()}; create this one with the saved settings to resume."
            )
        if missing := set(self._all_state_names()) - set(state):
            raise ValueError(
                f"the saved task has no {', '.join(sorted(missing))}: another version of "
                f"{self.config.name} wrote it; start a new run, e.g. from its agent's weights."
            )
        num_rows = len(np.asarray(state["step_index"]))
        if num_rows != self.num_envs:
            raise ValueError(
                f"the state holds {num_rows} environments and the vector has {self.num_envs}; "
                f"create the vector with {num_rows}, or select rows of the state."
            )
        for name in self._all_state_names():
            current = getattr(self, name)
            setattr(self, name, np.array(state[name], dtype=current.dtype).reshape(current.shape))
        self.streams.state = np.array(state["streams"], dtype=np.int64).view(np.uint64)

    def _begin(self, rows: Rows) -> None:
        self.is_reset_row[rows] = False
        self.step_index[rows] = 0
        self._start(rows)

    def _all_state_names(self) -> tuple[str, ...]:
        return (*self.state_names, "is_reset_row", "step_index")

    def _settings(self) -> str:
        options = dataclasses.asdict(self.config)
        return json.dumps({k: v for k, v in options.items() if k not in self.options_outside_state})

    def _streams(self, seed: int | Sequence[int]) -> RandomStreams:
        return RandomStreams(seed_per_env(seed, num_envs=self.num_envs))

    def _check_actions(self, actions: NDArray[Any]) -> None:
        has_shape = actions.shape == (self.num_envs,)
        if not has_shape or ((actions < 0) | (actions >= self.num_actions)).any():
            raise ValueError(
                f"actions {actions} are not legal; pass an array of shape ({self.num_envs},) of "
                f"whole numbers from 0 to {self.num_actions - 1}."
            )


def check_at_least(setting: str, value: int, *, least: int, example: int) -> None:
    """Raise ValueError if a setting is below its least legal value."""
    if value < least:
        raise ValueError(
            f"env.{setting}={value} must be at least {least}, e.g. env.{setting}={example}."
        )
