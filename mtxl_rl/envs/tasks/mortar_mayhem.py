"""MortarMayhem: see a list of commands, then carry them all out.

Rules: an arena of 5 x 5 tiles. First, each of `num_commands` commands (right, down, left, up or
stay; never off the arena) is shown for `show_duration` steps, with `show_delay` steps between. The
agent cannot move meanwhile. Then, for each command, the agent has `explosion_delay` steps to reach
the tile that the command leads to from the tile before. After that all other tiles are deadly, and
seen to be, for `explosion_duration` steps.
Source: Pleines et al. (2023), "Memory Gym: Partially Observable Challenges to Memory-Based Agents",
https://openreview.net/forum?id=jHc8dCx6DDr. Rules, rewards and lengths equal MortarMayhem-Grid-v0
of memory-gym 1.0.2, except `success`, which is 1 there even if the last command fails.
Observation: with view=symbolic [tile one-hot (column * 5 + row), heading one-hot (north, west,
south, east), command shown one-hot, safe tile one-hot while others are deadly]; with view=image
uint8 [84, 84, 3]. With `extra_observations`, a Dict of this `view` and of `target_vec`, the tiles
to the right and ahead to where the agent must be at the next explosion.
Action: 0 nothing, 1 turn left, 2 turn right, 3 forward.
Reward: 0.1 for being on the right tile when the others become deadly.
Episode length: until the last command is carried out, or the agent is on a deadly tile; both
terminate the episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import Image, enlarge
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)
from mtxl_rl.envs.tasks.walker import (
    COMMANDS,
    NUM_HEADINGS,
    SIDE,
    VIEWS,
    Floor,
    stamp,
    stamp_agents,
    step_table,
)
from mtxl_rl.envs.wrappers.checked import Observations

ARENA = 5
NUM_TILES = ARENA**2
COMMAND_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1), (0, 0))
"""Columns and rows of right, down, left, up and stay."""
STAY = 4
_NO_SIGN = len(COMMAND_STEPS)
_AFTER = step_table(COMMAND_STEPS, size=ARENA)
_IS_LEGAL = (np.arange(NUM_TILES)[:, None] != _AFTER) | (np.arange(len(COMMAND_STEPS)) == STAY)
_NUM_LEGAL = _IS_LEGAL.sum(axis=1)
_LEGAL = np.argsort(~_IS_LEGAL, axis=1, kind="stable")
"""Commands by tile, first those that stay on the arena."""
_TILE_PIXELS = 14


@dataclass(kw_only=True, slots=True)
class MortarMayhemConfig:
    """Options of ``env=MortarMayhem``."""

    name: str = "MortarMayhem"
    """The environment's name in the registry."""
    num_commands: int = 10
    """Commands shown and then carried out, at least 1."""
    show_duration: int = 3
    """Steps for which a command is shown, at least 1."""
    show_delay: int = 1
    """Steps between two commands, at least 0."""
    explosion_delay: int = 6
    """Steps to carry out a command, at least 1."""
    explosion_duration: int = 2
    """Steps for which all other tiles are deadly, at least 1."""
    view: str = "symbolic"
    """symbolic: a vector; image: 84 x 84 pixels."""
    extra_observations: bool = False
    """Observe a dict of the view and of the vector to the correct tile (to the right and ahead). It
    is for training signals that the agent does not need when it acts."""

    def __post_init__(self) -> None:
        check_at_least("num_commands", self.num_commands, least=1, example=10)
        check_at_least("show_duration", self.show_duration, least=1, example=3)
        check_at_least("show_delay", self.show_delay, least=0, example=1)
        check_at_least("explosion_delay", self.explosion_delay, least=1, example=6)
        check_at_least("explosion_duration", self.explosion_duration, least=1, example=2)
        check_choice("env.view", self.view, VIEWS)

    @property
    def num_show_steps(self) -> int:
        """Steps in which the agent cannot move."""
        return (self.show_duration + self.show_delay) * self.num_commands - 1

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        period = self.explosion_delay + self.explosion_duration
        explosions = self.num_show_steps + self.explosion_delay
        last = self.num_commands - 1
        # The earliest step to carry out the last command: when the tiles before it are safe again.
        begin = self.num_show_steps if last == 0 else explosions + period * last - period
        begin += 0 if last == 0 else self.explosion_duration
        shown = (self.show_duration + self.show_delay) * last + self.show_duration - 1
        first_wait = self.num_show_steps - (self.show_duration - 1)
        return TaskDescription(
            horizon=explosions + period * last + 1,
            reward_range=(0.0, round(0.1 * self.num_commands, 6)),
            remembered=f"{self.num_commands} commands in order",
            memory_window=max(first_wait, begin - shown),
        )


class MortarMayhem(VectorTask):
    """Mortar Mayhem on a grid; see the module's docstring."""

    state_names = ("tile", "heading", "commands", "targets", "sign", "safe_tile")

    def __init__(
        self, config: MortarMayhemConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.is_image = config.view == "image"
        self.has_extra = config.extra_observations
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=_observation_space(config),
            num_actions=4,
        )
        self.num_commands, self.num_show_steps = config.num_commands, config.num_show_steps
        self.explosion_delay = config.explosion_delay
        self.explosion_duration = config.explosion_duration
        self._signs = _sign_schedule(config)
        self._floor = Floor(ARENA)
        self.tile = np.zeros(num_envs, dtype=np.int64)
        """The agent's: column * 5 + row."""
        self.heading = np.zeros(num_envs, dtype=np.int64)
        self.commands = np.zeros((num_envs, self.num_commands), dtype=np.int64)
        self.targets = np.zeros((num_envs, self.num_commands), dtype=np.int64)
        """The right tile of each command."""
        self.sign = np.full(num_envs, _NO_SIGN)
        """The command shown, or 5."""
        self.safe_tile = np.full(num_envs, -1)
        """The only tile that is not deadly, or -1 where all are safe."""

    def _start(self, rows: Rows) -> None:
        draws = self.streams.uniform(rows, 1 + self.num_commands)
        tile = np.floor(draws[:, 0] * NUM_TILES).astype(np.int64)
        self.tile[rows] = tile
        self.heading[rows] = 0
        for index in range(self.num_commands):
            choice = np.floor(draws[:, 1 + index] * _NUM_LEGAL[tile]).astype(np.int64)
            command = _LEGAL[tile, choice]
            tile = _AFTER[tile, command]
            self.commands[rows, index] = command
            self.targets[rows, index] = tile
        self.sign[rows] = self.commands[rows, 0]
        self.safe_tile[rows] = -1

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        is_showing = self.step_index < self.num_show_steps
        obeyed = np.where(live & ~is_showing, actions, 0)
        self.tile, self.heading = self._floor.walk(self.tile, self.heading, obeyed)
        since = self._steps_since_explosion()
        index, phase = np.divmod(since, self._period)
        index = np.minimum(np.maximum(index, 0), self.num_commands - 1)
        is_deadly = (since >= 0) & (phase < self.explosion_duration)
        target = self.targets[self.all_rows, index]
        is_right = self.tile == target
        passes = is_deadly & (phase == 0) & is_right
        is_done = passes & (index == self.num_commands - 1)
        self._show(is_deadly, target)
        terminated = is_done | (is_deadly & ~is_right)
        return Outcome(0.1 * passes, terminated, np.zeros_like(terminated), is_done)

    @property
    def _period(self) -> int:
        """Steps between two explosions."""
        return self.explosion_delay + self.explosion_duration

    def _steps_since_explosion(self) -> NDArray[np.int64]:
        """Steps since the first explosion, which is step 0 of the first period."""
        return self.step_index - self.num_show_steps - self.explosion_delay

    def _show(self, is_deadly: Flags, target: NDArray[np.int64]) -> None:
        next_step = np.minimum(self.step_index + 1, len(self._signs) - 1)
        which = self._signs[next_step]
        sign = self.commands[self.all_rows, which]
        self.sign = np.where(which < 0, _NO_SIGN, sign)
        self.safe_tile = np.where(is_deadly, target, -1)

    def _observe(self) -> Observations:
        view = self._picture() if self.is_image else self._vector()
        return {"view": view, "target_vec": self._target_vector()} if self.has_extra else view

    def _target_vector(self) -> NDArray[np.float32]:
        index, phase = np.divmod(self._steps_since_explosion(), self._period)
        index = np.clip(index + (phase >= self.explosion_duration), 0, self.num_commands - 1)
        target = self.targets[self.all_rows, index]
        across, down = np.divmod(target, ARENA) - np.array(np.divmod(self.tile, ARENA))
        # What lies to the right and ahead of an agent that looks north, west, south and east.
        right = np.stack([across, -down, -across, down])[self.heading, self.all_rows]
        ahead = np.stack([-down, -across, down, across])[self.heading, self.all_rows]
        return np.stack([right, ahead], axis=1).astype(np.float32)

    def _vector(self) -> NDArray[np.float32]:
        first_sign = NUM_TILES + NUM_HEADINGS
        first_safe = first_sign + len(COMMAND_STEPS)
        observations = np.zeros((self.num_envs, first_safe + NUM_TILES), dtype=np.float32)
        observations[self.all_rows, self.tile] = 1
        observations[self.all_rows, NUM_TILES + self.heading] = 1
        shows = np.flatnonzero(self.sign != _NO_SIGN)
        observations[shows, first_sign + self.sign[shows]] = 1
        deadly = np.flatnonzero(self.safe_tile >= 0)
        observations[deadly, first_safe + self.safe_tile[deadly]] = 1
        return observations

    def _picture(self) -> NDArray[np.uint8]:
        images = _ARENAS[self.safe_tile + 1]
        centres = self._floor.centres(self.tile, pixels=_TILE_PIXELS)
        stamp_agents(images, centres=centres, heading=self.heading)
        for which, sprite in enumerate(COMMANDS):
            rows = np.flatnonzero(self.sign == which)
            middle = np.full((len(rows), 2), SIDE // 2)
            stamp(images, rows, centres=middle, sprite=sprite)
        return images

    def _draw(self, row: int) -> Image:
        return enlarge(self._picture()[row])


def _observation_space(config: MortarMayhemConfig) -> spaces.Space[Any]:
    """Observation space of one environment."""
    length = 2 * NUM_TILES + NUM_HEADINGS + len(COMMAND_STEPS)
    view: spaces.Space[Any] = spaces.Box(0.0, 1.0, (length,), np.float32)
    if config.view == "image":
        view = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    if not config.extra_observations:
        return view
    reach = float(ARENA - 1)
    return spaces.Dict({"view": view, "target_vec": spaces.Box(-reach, reach, (2,), np.float32)})


def _sign_schedule(config: MortarMayhemConfig) -> NDArray[np.int64]:
    """Return the index of the command shown after each number of steps; -1 is none, and is last."""
    shown = np.arange(config.num_commands)[:, None].repeat(config.show_duration, axis=1)
    pause = np.full((config.num_commands, config.show_delay), -1)
    return np.append(np.concatenate([shown, pause], axis=1).ravel(), -1)


def _arenas() -> NDArray[np.uint8]:
    """Return the arena's picture while all tiles are safe, then for each safe tile."""
    side = _TILE_PIXELS
    tiles = np.zeros((2, side, side, 3), dtype=np.uint8)
    tiles[0], tiles[1] = (29, 60, 107), (112, 24, 36)
    tiles[0, 1:-1, 1:-1], tiles[1, 1:-1, 1:-1] = (21, 43, 77), (81, 18, 26)
    images = np.zeros((1 + NUM_TILES, SIDE, SIDE, 3), dtype=np.uint8)
    for safe, image in enumerate(images, start=-1):
        for tile in range(NUM_TILES):
            left, top = (SIDE - ARENA * side) // 2 + side * np.array(divmod(tile, ARENA))
            image[top : top + side, left : left + side] = tiles[int(safe not in (-1, tile))]
    return images


_ARENAS = _arenas()
