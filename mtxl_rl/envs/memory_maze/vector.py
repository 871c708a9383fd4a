"""Many Memory Mazes in one Gymnasium vector environment."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Int64
from numpy.typing import NDArray

from mtxl_rl.env_keys import TEACHER_KEY, TRAINING_REWARD_KEY
from mtxl_rl.envs.memory_maze.advance import Scenes, advance, draw_views
from mtxl_rl.envs.memory_maze.camera import (
    TAN_HALF_VIEW,
    tan_half_top_view,
    top_cameras,
    view_tables,
    walker_cameras,
)
from mtxl_rl.envs.memory_maze.curriculum import (
    has_curriculum,
    no_curriculum,
    point_of_seed,
    size_to_play,
    steps_to_play,
    with_targets,
)
from mtxl_rl.envs.memory_maze.explorer import Explorer
from mtxl_rl.envs.memory_maze.kernels import announcing_compilation
from mtxl_rl.envs.memory_maze.layout import FREE, EpisodeLayout, EpisodeStream, spawn_height
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.maze_spaces import action_space, observation_space, share_bounds
from mtxl_rl.envs.memory_maze.observe import (
    border_width,
    draw_maps,
    draw_paths,
    egocentric,
    grid_positions,
    maze_layouts,
)
from mtxl_rl.envs.memory_maze.raycast import draw_scenes
from mtxl_rl.envs.memory_maze.spec import (
    ACTIONS,
    BALL_RADIUS,
    CELL,
    TARGET_COLORS,
    TARGET_RADIUS,
    MemoryMazeConfig,
)
from mtxl_rl.envs.memory_maze.textures import load_atlas
from mtxl_rl.envs.memory_maze.threads import Threads, rows_between
from mtxl_rl.envs.seeds import seed_per_env
from mtxl_rl.envs.wrappers.checked import EnvState, Observations, reset_mask

_CONTROLS = np.array(ACTIONS)
_COLORS = np.array(TARGET_COLORS)
_EAR_DISTANCE, _EAR_HEIGHT, _EAR_RADIUS, _EAR_LIGHT = 0.22, 0.6, 0.26, 0.7 * 255
_BALL_RGB = (86, 200, 153)  # the mean of its texture; from above it is two pixels
_OPTIONS_OUTSIDE_STATE = (
    "name",
    "num_threads",
    "episode_length",
    *no_curriculum(),
    "progress_reward",
    "teacher",
    "extra_observations",
    "seen_observations",
    "show_path",
    "top_camera",
    "camera_resolution",
    "discrete_actions",
    "textures",
)
"""Options on which a saved state does not depend."""
ORACLE_LOGIT = 10.0
"""Logit of the action that the oracle takes; the others have 0."""
_MAX_SEED = 2**32 - 1
_EXPLORER = "explorer_"


class Motion(NamedTuple):
    """State that moves the walkers, for policies that look ahead; read-only views."""

    position: NDArray[np.float64]
    """[B, 5]; see `physics.move_walker`."""
    velocity: NDArray[np.float64]
    """[B, 5]."""
    box_of_cell: NDArray[np.int16]
    """[B, n, n]; see `layout.Maze`."""
    boxes: NDArray[np.uint8]
    """[B, boxes, 4]; see `layout.Maze`."""
    targets: NDArray[np.float64]
    """[B, targets, 2] centres in metres."""
    current: NDArray[np.int64]
    """[B] indices of the current targets."""


class MemoryMazeVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """A batch of Memory Mazes: find the sphere of the colour that frames the picture, repeatedly.

    Observations: uint8 pictures [B, side, side, 3], or a dict with `extra_observations`. Actions:
    noop, forward, left, right, forward + left, forward + right, or [roll, steer]; each is held for
    1 / `control_freq` seconds. Reward 1 for touching the right sphere. Episodes are truncated after
    1,000 / 2,000 / 3,000 / 4,000 steps (9x9 / 11x11 / 13x13 / 15x15, at 4 actions a second) and
    never terminate. An environment that ended is reset by the next step (``NEXT_STEP``).

    Environment i has the episodes of ``memory_maze.tasks.memory_maze_9x9(seed=seed + i)``. A reset
    with a seed equals a new environment of that seed; one without continues with the next
    episode of the stream.

    With `curriculum`, some environments play smaller mazes, and with `curriculum_episode_length`
    the first episodes are shorter. Where such an episode ends, the info ``is_practice`` [B] is
    true.

    With `progress_reward`, each step's info has ``training_reward`` [B]: the reward, plus
    `progress_reward` for each cell that the step gained on the path of an `explorer.Explorer`.

    With `teacher`, the infos of steps and resets have ``teacher_logits`` [B, 6]: of the explorer
    minus the moves to its goal, of the oracle `ORACLE_LOGIT` for its action.

    Pasukonis et al. (2023), https://arxiv.org/abs/2210.13383

    Args:
        num_envs: Number of environments B, at least 1.
        config: The task; 9x9 by default.
        seed: Seed of the first environment, or one for each; None draws one.
        copy: Whether each step returns fresh arrays. If false, it draws into one batch of pictures
            that the next step overwrites.
        render_mode: None or ``rgb_array``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it without ClassVar
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        config: MemoryMazeConfig | None = None,
        seed: int | Sequence[int] | None = None,
        copy: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1, e.g. num_envs=16.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} must be None or 'rgb_array'.")
        self.config = config or MemoryMazeConfig()
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.config.control_freq}
        self.single_observation_space = observation_space(self.config)
        self.single_action_space = action_space(self.config)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        share_bounds(self.observation_space)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._copy = copy
        self._threads = Threads(num_envs, num_threads=self.config.num_threads)
        self._allocate()
        self._streams: list[EpisodeStream] = []
        self._seed_streams(seed)
        with announcing_compilation("the Memory Maze engine"):
            self._warm_up()

    def _allocate(self) -> None:
        size, count = self.config.maze_size, self.num_envs
        cells = (count, size.grid, size.grid)
        side = self.config.camera_resolution
        self._atlas = load_atlas(self.config.textures)
        self._tables = view_tables(side)
        self._images = np.zeros((count, side, side, 3), np.uint8)
        # The walkers: x, y, height above rest, heading, roll.
        self._position = np.zeros((count, 5))
        self._velocity = np.zeros((count, 5))
        self._touched = np.zeros(count, np.int64)
        # The episodes.
        self._wall_texture = np.zeros(cells, np.uint8)
        self._is_room = np.zeros(cells, np.uint8)
        self._box_of_cell = np.full(cells, -1, np.int16)
        self._boxes = np.zeros((count, size.grid**2, 4), np.uint8)
        self._targets = np.zeros((count, size.num_targets, 2))
        self._colors = np.zeros((count, size.num_targets), np.uint8)
        self._target_rgb = np.zeros((count, size.num_targets, 3), np.float32)
        self._current = np.zeros(count, np.int64)
        self._touched_at_start = np.zeros(count, np.int64)
        self._first_pose = np.zeros((count, 3))  # x, y and heading
        self._last_pose = np.zeros((count, 3))  # of the step before
        self._num_steps = np.zeros(count, np.int64)
        self._steps_of_episode = np.full(count, self.config.steps_per_episode)
        self._is_reset_row = np.zeros(count, np.bool_)
        # These decide the next episode; the side is of the current one.
        self._seeds = np.zeros(count, np.int64)
        self._num_steps_in_all = np.zeros(count, np.int64)
        self._sides = np.zeros(count, np.int64)
        self._is_stale = np.ones(count, np.bool_)  # its picture is not drawn yet
        self._is_running = False
        self._explorer: Explorer | None = None
        if self._reports_explorer:
            self._explorer = Explorer(count, grid=size.grid)
        self._oracle = _make_oracle() if self.config.teacher == "oracle" else None
        self._above: MemoryMazeVectorEnv | None = None
        """Draws mazes from above, for `render_row`."""

    def _seed_streams(self, seed: int | Sequence[int] | None) -> None:
        if seed is None:
            seed = [int(word) for word in np.random.SeedSequence().generate_state(self.num_envs)]
        seeds = seed_per_env(seed, num_envs=self.num_envs, largest=_MAX_SEED)
        self._streams = [self._first_stream(index, each) for index, each in enumerate(seeds)]

    def _first_stream(self, index: int, seed: int) -> EpisodeStream:
        """The stream of an environment that is seeded anew."""
        self._seeds[index], self._num_steps_in_all[index] = seed, 0
        self._choose_size(index)
        return self._new_stream(index)

    def _choose_size(self, index: int) -> bool:
        """Set the side of an environment's next mazes; return whether it changed."""
        before = self._sides[index]
        size = size_to_play(
            self.config,
            point=point_of_seed(int(self._seeds[index])),
            num_steps=int(self._num_steps_in_all[index]),
        )
        self._sides[index] = SIZES[size].side
        return bool(self._sides[index] != before)

    def _next_length(self, index: int) -> int:
        """The steps of an environment's next episode."""
        seed, num_steps = int(self._seeds[index]), int(self._num_steps_in_all[index])
        return steps_to_play(
            self.config,
            point=point_of_seed(seed + num_steps),
            phase=point_of_seed(seed),
            num_steps=num_steps,
        )

    def _new_stream(self, index: int) -> EpisodeStream:
        """A new stream for an environment's seed and current size."""
        full, side = self.config.maze_size, self._sides[index]
        size = SIZES[f"{side}x{side}"]
        return EpisodeStream(
            with_targets(size, num_targets=full.num_targets),
            grid=full.grid,
            seed=int(self._seeds[index]),
            target_height=self.config.target_height,
            randomize_colors=self.config.randomize_colors,
            original_quirks=self.config.original_quirks,
        )

    def _warm_up(self) -> None:
        """Compile everything with one step of the first environment, then reset its arrays."""
        self._new_stream(0).next_episode()
        self._wall_texture[0] = 0
        self._wall_texture[0, 1:-1, 1:-1] = FREE
        self._advance(np.zeros((self.num_envs, 2)), only=0)
        self._is_stale[0] = True
        self._draw(self._images, only=0)
        self._explore()
        for array in (self._position, self._velocity, self._wall_texture):
            array[:1] = 0

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start episodes everywhere, or in ``options["reset_mask"]``.

        With a seed, environment i starts the first episode of seed + i, or of seed[i].
        """
        self._check_open("reset")
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise ValueError(
                f"reset options {sorted(unknown)} are unknown; Memory Maze takes reset_mask only."
            )
        mask = reset_mask(options, num_envs=self.num_envs)
        if mask is None:
            mask = np.ones(self.num_envs, np.bool_)
        elif not (self._is_running or mask.all()):
            raise ValueError(
                "reset_mask came before the first reset(): call reset() without it first."
            )
        if seed is not None:
            seeds = seed_per_env(seed, num_envs=self.num_envs, largest=_MAX_SEED)
            for index in np.flatnonzero(mask):
                self._streams[index] = self._first_stream(int(index), seeds[index])
        self._start(mask)
        self._is_running = True
        return self._observe(), self._teacher_info()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[
        Observations,
        NDArray[np.float32],
        NDArray[np.bool_],
        NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Hold each action; where an episode ended in the step before, start the next instead."""
        self._check_open("step")
        if not self._is_running:
            raise ValueError("step() came before the first reset(): call reset() first.")
        controls = self._controls(actions)
        self._new_images()
        self._last_pose[:] = self._position[:, [0, 1, 3]]
        self._advance(controls)
        self._num_steps += 1
        self._num_steps_in_all += 1
        rewards = np.zeros(self.num_envs, np.float32)
        if self._is_stale.any():
            rewards = self._collect_rewards()
            self._start(self._is_reset_row)
            self._draw(self._images)
        truncated = self._num_steps >= self._steps_of_episode
        self._is_reset_row = truncated
        infos: dict[str, Any] = {}
        if truncated.any():
            is_smaller = self._sides < self.config.maze_size.side
            is_practice = is_smaller | (self._steps_of_episode < self.config.steps_per_episode)
            if has_curriculum(self.config) or is_practice.any():
                infos |= {"is_practice": is_practice, "_is_practice": truncated.copy()}
        self._explore()
        if self.config.progress_reward and self._explorer is not None:
            shaping = np.float32(self.config.progress_reward) * self._explorer.progress
            infos[TRAINING_REWARD_KEY] = rewards + shaping
            infos[f"_{TRAINING_REWARD_KEY}"] = np.ones(self.num_envs, np.bool_)
        infos |= self._teacher_info()
        return self._observations(), rewards, np.zeros_like(truncated), truncated.copy(), infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """The current pictures, if render_mode is ``rgb_array``."""
        if self.render_mode is None or not self._is_running:
            return None
        return tuple(self._images.copy())

    def render_row(self, index: int) -> NDArray[np.uint8]:
        """The maze of environment `index` from above, 256 x 256 pixels; its state is unchanged."""
        if not self._is_running:
            raise ValueError("render_row() came before the first reset(): call reset() first.")
        if self._above is None:
            config = dataclasses.replace(
                self.config, top_camera=True, camera_resolution=256, num_threads=1,
                extra_observations=False, seen_observations=False, show_path=False,
                progress_reward=0.0, teacher="",
            )  # fmt: skip
            self._above = MemoryMazeVectorEnv(1, config=config)
            self._above.reset()
        self._above.set_env_state(0, self.get_env_state(index))
        return self._above._images[0].copy()

    def render_pose(self, index: int, *, x: float, y: float, heading: float) -> NDArray[np.uint8]:
        """Picture of environment `index` with its walker at another pose; its state is unchanged.

        Args:
            index: The environment.
            x: Metres, inside the maze.
            y: Metres.
            heading: Radians, counter-clockwise from the x axis.
        """
        if not self._is_running:
            raise ValueError("render_pose() came before the first reset(): call reset() first.")
        half = self.config.maze_size.side  # in metres: cells have two
        if not (abs(x) < half and abs(y) < half):
            raise ValueError(f"x={x}, y={y} must lie within {half} m of the maze's centre.")
        kept = self._position[index].copy()
        image = self._images[index].copy()
        try:
            self._position[index] = (x, y, 0.0, heading, 0.0)
            self._is_stale[index] = True
            self._draw(self._images, only=index)
            image, self._images[index] = self._images[index].copy(), image
        finally:
            self._position[index] = kept
        return image

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """End the threads; `close` calls this once."""
        self._threads.close()
        if self._above is not None:
            self._above.close()

    def get_state(self) -> EnvState:
        """The state of all environments, as copies."""
        self._check_open("get_state")
        state: EnvState = {"task": self._task(), "is_running": int(self._is_running)}
        state |= {name: array.copy() for name, array in self._state_arrays().items()}
        streams = [stream.get_state() for stream in self._streams]
        state |= {f"stream_{key}": np.array([s[key] for s in streams]) for key in streams[0]}
        return state

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state` of the same task and number of environments."""
        self._check_open("set_state")
        self._check_state(state, num_envs=self.num_envs)
        for index in range(self.num_envs):
            self._restore(index, state, row=index)
        self._is_running = bool(state["is_running"])
        self._observe()

    def get_env_state(self, index: int) -> EnvState:
        """The state of one environment, as of a vector of one; for branching."""
        return {
            key: value[index : index + 1] if isinstance(value, np.ndarray) else value
            for key, value in self.get_state().items()
        }

    def set_env_state(self, index: int, state: EnvState) -> None:
        """Continue one environment from a state of `get_env_state`, of this or another vector."""
        self._check_open("set_env_state")
        self._check_state(state, num_envs=1)
        if not (self._is_running and state["is_running"]):
            raise ValueError("set_env_state() came before the first reset(): call reset() first.")
        self._restore(index, state, row=0)
        self._observe()

    def observe(self) -> Observations:
        """The current observations again, as after `set_state`."""
        if not self._is_running:
            raise ValueError("observe() came before the first reset(): call reset() first.")
        return self._observe()

    def walkers(self) -> NDArray[np.float64]:
        """x, y in metres, height above rest, heading and roll in radians, [B, 5], as copies."""
        return self._position.copy()

    def current_targets(self) -> NDArray[np.float64]:
        """Centres of the current target spheres, [B, 2] in metres."""
        return self._targets[np.arange(self.num_envs), self._current]

    def motion(self) -> Motion:
        """State that the next moves depend on, in addition to the actions."""
        return Motion(
            self._position,
            self._velocity,
            self._box_of_cell,
            self._boxes,
            self._targets,
            self._current,
        )

    def explore(self, explorer: Explorer) -> None:
        """Let explorers, one for each environment, see the current step and plan."""
        explorer.update(
            self._threads.run,
            position=self._position,
            velocity=self._velocity,
            walls=self.walls(),
            targets=self._targets,
            current=self._current,
            episode_step=self._num_steps,
        )

    def player(
        self, name: str, *, memory_steps: int | None = None
    ) -> Callable[[], NDArray[np.int64]]:
        """The actions [B] of a player of `TEACHERS`, to be called at every step.

        An explorer forgets what it last saw more than `memory_steps` steps ago; None: nothing.
        """
        if not self.config.discrete_actions:
            raise ValueError(f"the {name} takes the six actions: remove env.discrete_actions=false")
        if name == "oracle":
            oracle = _make_oracle()
            return lambda: oracle(self)
        grid = self.config.maze_size.grid
        explorer = Explorer(self.num_envs, grid=grid, memory_steps=memory_steps)
        with announcing_compilation("the explorer"):
            self.explore(explorer)

        def act() -> NDArray[np.int64]:
            self.explore(explorer)
            return explorer.actions.copy()

        return act

    @property
    def _reports_explorer(self) -> bool:
        """Whether a step reports what the explorer knows, whose memory is then in the state."""
        config = self.config
        is_rewarding, is_teaching = config.progress_reward > 0, config.teacher == "explorer"
        return is_rewarding or is_teaching or config.seen_observations

    def target_ages(self) -> Int64[np.ndarray, "B targets"]:
        """Steps since an explorer last saw the middle of each target's cell; -1: never.

        Call it at every step.
        """
        grid = self.config.maze_size.grid
        if self._explorer is None:
            self._explorer = Explorer(self.num_envs, grid=grid)
            self._explore()
        row = (grid / 2 - self._targets[..., 1] / CELL).astype(np.int64)
        column = (grid / 2 + self._targets[..., 0] / CELL).astype(np.int64)
        seen_at = self._explorer.memory.seen_at[np.arange(self.num_envs)[:, None], row, column]
        ages: NDArray[np.int64] = np.where(seen_at < 0, -1, self._num_steps[:, None] - seen_at)
        return ages

    def _explore(self) -> None:
        if self._explorer is not None:
            self.explore(self._explorer)

    def _teacher_info(self) -> dict[str, Any]:
        """The logits of the teacher at the current step, if there is one."""
        if self._oracle is not None:
            chosen = self._oracle(self)[:, None] == np.arange(len(ACTIONS))
            logits = np.where(chosen, np.float32(ORACLE_LOGIT), np.float32(0))
        elif self.config.teacher and self._explorer is not None:
            logits = -self._explorer.costs
        else:
            return {}
        return {TEACHER_KEY: logits, f"_{TEACHER_KEY}": np.ones(self.num_envs, np.bool_)}

    def run_in_threads(self, kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Run ``kernel(rows, *arguments)`` over the environments; see `Threads.run`."""
        self._threads.run(kernel, *arguments)

    def _run(self, only: int | None, kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Run a kernel over all environments, or over one."""
        if only is None:
            self._threads.run(kernel, *arguments)
        else:
            kernel(rows_between(only, only + 1), *arguments)

    def walls(self) -> NDArray[np.bool_]:
        """Whether each cell is a wall, [B, n, n], rows from the top, with the outer wall."""
        return self._wall_texture != FREE

    def _advance(self, controls: NDArray[np.float64], *, only: int | None = None) -> None:
        """Move the walkers, and draw the pictures that depend only on the move.

        One call does both, since synchronising the threads costs as much as a picture.
        """
        self._run(
            only,
            advance,
            self._velocity,
            controls,
            self._is_reset_row,
            self.config.num_substeps,
            self._box_of_cell,
            self._boxes,
            self._touched,
            self._touched_at_start,
            self._scenes(self._images),
            self._sees_over_walls(),
        )

    def _sees_over_walls(self) -> bool:
        return self.config.top_camera or self.config.good_visibility

    def _scenes(self, images: NDArray[np.uint8]) -> Scenes:
        return Scenes(
            position=self._position,
            wall_textures=self._wall_texture,
            is_room=self._is_room,
            wall_height=self.config.wall_height,
            targets=self._targets,
            target_colors=self._target_rgb,
            target_height=self.config.target_height,
            current=self._current,
            atlas=self._atlas,
            tables=self._tables,
            border=border_width(self.config.camera_resolution),
            is_stale=self._is_stale,
            images=images,
        )

    def _controls(self, actions: NDArray[Any]) -> NDArray[np.float64]:
        array = np.asarray(actions)
        if not self.config.discrete_actions:
            legal = array.shape == (self.num_envs, 2) and np.issubdtype(array.dtype, np.number)
            if not (legal and (np.abs(array) <= 1).all()):
                raise ValueError(
                    f"actions of shape {array.shape} and dtype {array.dtype} are not legal; give "
                    f"numbers from -1 to 1 of shape ({self.num_envs}, 2)."
                )
            return array.astype(np.float64)
        legal = array.shape == (self.num_envs,) and np.issubdtype(array.dtype, np.integer)
        if not (legal and ((array >= 0) & (array < len(ACTIONS))).all()):
            raise ValueError(
                f"actions {array} are not legal; give whole numbers from 0 to {len(ACTIONS) - 1} "
                f"of shape ({self.num_envs},)."
            )
        return _CONTROLS[array]

    def _collect_rewards(self) -> NDArray[np.float32]:
        """Rewards of the last move; draws new targets for those that were reached."""
        if self._touched_at_start.any():
            self._touched |= np.where(self._is_reset_row, 0, self._touched_at_start)
            for index in np.flatnonzero(self._touched_at_start):
                self._streams[index].first_step_is_over()
            self._touched_at_start[:] = 0
        reached = self._touched >> self._current & 1
        for index in np.flatnonzero(reached):
            # The original goes through the spheres in order and forgets those behind it.
            current = int(self._current[index])
            still_touched = int(self._touched[index]) >> current << current
            self._current[index] = self._streams[index].draw_target(still_touched)
        return reached.astype(np.float32)

    def _start(self, mask: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(mask):
            if self._choose_size(int(index)):
                self._streams[index] = self._new_stream(int(index))
            self._steps_of_episode[index] = self._next_length(int(index))
            self._place(int(index), self._streams[index].next_episode())

    def _place(self, index: int, episode: EpisodeLayout) -> None:
        boxes = episode.maze.boxes
        height = spawn_height(episode.heading)
        self._position[index] = (*episode.spawn, height, episode.heading, 0.0)
        self._velocity[index] = 0.0
        self._wall_texture[index] = episode.wall_texture
        self._is_room[index] = episode.maze.is_room
        self._box_of_cell[index] = episode.maze.box_of_cell
        self._boxes[index, : len(boxes)] = boxes
        self._targets[index] = episode.targets
        self._colors[index] = episode.colors
        self._target_rgb[index] = 255 * _COLORS[episode.colors]
        self._current[index] = episode.current
        self._touched_at_start[index] = episode.touched_at_start
        self._first_pose[index] = (*episode.spawn, episode.heading)
        self._last_pose[index] = self._first_pose[index]
        self._num_steps[index] = 0
        self._is_reset_row[index] = False

    def _observe(self) -> Observations:
        self._new_images()
        self._is_stale[:] = True
        self._draw(self._images)
        self._explore()
        return self._observations()

    def _new_images(self) -> None:
        if self._copy:
            # A new array, because the one returned before belongs to the caller.
            self._images = np.empty_like(self._images)

    def _observations(self) -> Observations:
        """The pictures, with path and map or as a dict with the extra observations."""
        if self.config.show_path:
            self._draw_paths_and_maps()
        if not self.config.extra_observations:
            return self._images
        return self._extra_observations()

    def _draw(self, images: NDArray[np.uint8], *, only: int | None = None) -> None:
        """Draw the pictures that are stale."""
        if self._sees_over_walls():
            self._cast(images, only=only)
        else:
            self._run(only, draw_views, self._scenes(images))

    def _cast(self, images: NDArray[np.uint8], *, only: int | None = None) -> None:
        """Draw the views that see over walls."""
        config = self.config
        heights = np.full((*self._targets.shape[:2], 1), config.target_height)
        radii = np.full_like(heights, TARGET_RADIUS)
        spheres = np.concatenate([self._targets, heights, radii, self._target_rgb], axis=2)
        if config.top_camera:
            cameras = top_cameras(self.num_envs)
            tan_half_view = tan_half_top_view(config.maze_size.grid)
            spheres = np.concatenate([spheres, self._body()], axis=1)
        else:
            cameras, tan_half_view = walker_cameras(self._position), TAN_HALF_VIEW
        self._run(
            only,
            draw_scenes,
            cameras,
            tan_half_view,
            self._wall_texture,
            self._is_room,
            config.wall_height,
            spheres,
            self._atlas,
            images,
            self._target_rgb,
            self._current,
            border_width(config.camera_resolution),
        )

    def _body(self) -> NDArray[np.float64]:
        """Spheres [B, 3, 7] that show the walker from above: a red and a blue ear, and the ball."""
        x, y, height, heading, _ = self._position.T
        body = np.zeros((self.num_envs, 3, 7))
        for k, side in enumerate((_EAR_DISTANCE, -_EAR_DISTANCE, 0.0)):
            body[:, k, 0] = x + side * np.sin(heading)
            body[:, k, 1] = y - side * np.cos(heading)
            body[:, k, 2] = height + (_EAR_HEIGHT if side else BALL_RADIUS)
            body[:, k, 3] = _EAR_RADIUS if side else BALL_RADIUS
        body[:, 0, 4] = body[:, 1, 6] = _EAR_LIGHT
        body[:, 2, 4:] = _BALL_RGB
        return body

    def _layouts(self) -> NDArray[np.uint8]:
        layouts = maze_layouts(self._wall_texture)
        if self.config.show_path:
            grid = self.config.maze_size.grid
            start = grid_positions(self._position[:, :2], grid=grid)
            end = grid_positions(self.current_targets(), grid=grid)
            draw_paths(0, self.num_envs, layouts, start, end)
        return layouts

    def _draw_paths_and_maps(self) -> None:
        position = grid_positions(self._position[:, :2], grid=self.config.maze_size.grid)
        heading = self._position[:, 3].copy()
        draw_maps(0, self.num_envs, self._layouts(), position, heading, self._images)

    def _extra_observations(self) -> dict[str, NDArray[Any]]:
        grid = self.config.maze_size.grid
        xy, heading = self._position[:, :2], self._position[:, 3]
        rows = np.arange(self.num_envs)
        vectors = egocentric(self._targets, origin=xy, heading=heading)
        positions = grid_positions(self._targets, grid=grid)
        return {
            "image": self._images,
            "target_color": _COLORS[self._colors[rows, self._current]],
            "agent_pos": grid_positions(xy, grid=grid),
            "agent_dir": np.stack([np.cos(heading), np.sin(heading)], axis=-1),
            "targets_vec": vectors,
            "targets_pos": positions,
            "target_vec": vectors[rows, self._current],
            "target_pos": positions[rows, self._current],
            "maze_layout": self._layouts(),
            **self._seen_observations(positions, vectors),
        }

    def _seen_observations(
        self, positions: NDArray[np.float64], vectors: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        """What the picture shows, and what a perfect memory knows.

        Vectors to the targets in view and to those that were in view [B, targets, 2], 0 for others;
        their positions [B, targets, 2] and [B, 2], -1 for others; the vectors to where the
        episode began and to where the walker was a step ago, and its headings there, [B, 2].
        Vectors are (right, ahead).
        """
        if not self.config.seen_observations:
            return {}
        ages = self.target_ages()[..., None]
        seen = np.where(ages >= 0, positions, -1.0)
        return {
            "visible_targets_vec": np.where(ages == 0, vectors, 0.0),
            "seen_targets_vec": np.where(ages >= 0, vectors, 0.0),
            **self._pose_observations("first", self._first_pose),
            **self._pose_observations("last", self._last_pose),
            "seen_targets_pos": seen,
            "seen_target_pos": seen[np.arange(self.num_envs), self._current],
        }

    def _pose_observations(
        self, name: str, pose: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """The vector to an earlier pose [B, 3], and the heading there, as (right, ahead)."""
        xy, heading = self._position[:, :2], self._position[:, 3]
        turn = pose[:, 2] - heading
        return {
            f"{name}_vec": egocentric(pose[:, None, :2], origin=xy, heading=heading)[:, 0],
            f"{name}_dir": np.stack([-np.sin(turn), np.cos(turn)], axis=-1),
        }

    def _state_arrays(self) -> dict[str, NDArray[Any]]:
        explorer: dict[str, NDArray[Any]] = {}
        if self._explorer is not None and self._reports_explorer:
            explorer = self._explorer.memory._asdict()
        return {
            **{f"{_EXPLORER}{name}": array for name, array in explorer.items()},
            "position": self._position,
            "velocity": self._velocity,
            "wall_texture": self._wall_texture,
            "is_room": self._is_room,
            "box_of_cell": self._box_of_cell,
            "boxes": self._boxes,
            "targets": self._targets,
            "colors": self._colors,
            "current": self._current,
            "touched_at_start": self._touched_at_start,
            "first_pose": self._first_pose,
            "last_pose": self._last_pose,
            "num_steps": self._num_steps,
            "steps_of_episode": self._steps_of_episode,
            "seeds": self._seeds,
            "num_steps_in_all": self._num_steps_in_all,
            "sides": self._sides,
            "ended": self._is_reset_row,
        }

    def _task(self) -> str:
        """Options that a state depends on, as JSON."""
        fields = dataclasses.asdict(self.config)
        task = {key: value for key, value in fields.items() if key not in _OPTIONS_OUTSIDE_STATE}
        return json.dumps(task, sort_keys=True)

    def _check_state(self, state: EnvState, *, num_envs: int) -> None:
        if state.get("task") != self._task():
            raise ValueError(
                f"the state is of {state.get('task', 'another environment')} and this Memory Maze "
                f"is {self._task()}; make this one like the saved one."
            )
        num_saved = len(np.asarray(state["position"]))
        if num_saved != num_envs:
            raise ValueError(
                f"the state has {num_saved} environments and {num_envs} are to be restored; make "
                "as many as were saved."
            )

    def _restore(self, index: int, state: EnvState, *, row: int) -> None:
        for name, array in self._state_arrays().items():
            if name in state:
                array[index] = state[name][row]  # type: ignore[index]
            elif self._explorer is not None and name.startswith(_EXPLORER):
                # Saved without progress_reward.
                self._explorer.forget(index)
        self._target_rgb[index] = 255 * _COLORS[self._colors[index]]
        stream = {
            key.removeprefix("stream_"): value[row]  # type: ignore[index]
            for key, value in state.items()
            if key.startswith("stream_")
        }
        self._streams[index] = self._new_stream(index)
        self._streams[index].set_state(stream)

    def _check_open(self, method: str) -> None:
        if self.closed:
            raise ValueError(f"{method}() came after close(): make a new environment.")


def _make_oracle() -> Callable[[MemoryMazeVectorEnv], NDArray[np.int64]]:
    # Imported here because the oracle plays in this module's environments.
    from mtxl_rl.envs.memory_maze.oracle import Oracle

    return Oracle()


def make_vector(
    num_envs: int = 1,
    *,
    render_mode: str | None = None,
    seed: int | Sequence[int] | None = None,
    copy: bool = True,
    **options: Any,  # noqa: ANN401 - gymnasium.make_vec passes a config's fields
) -> MemoryMazeVectorEnv:
    """Entry point of `gymnasium.make_vec`; options are the fields of `MemoryMazeConfig`."""
    config = MemoryMazeConfig(**options)
    return MemoryMazeVectorEnv(
        num_envs, config=config, seed=seed, copy=copy, render_mode=render_mode
    )
