"""GridMemoryMaze: Memory Maze on a grid, with the same mazes and the same task, without 3D.

Rules: each episode has a new maze with 3 to 6 objects, each in a room of its own (in the small
mazes of a curriculum, several in a room); the agent starts in any room. When it enters the cell of
the prompted object, another object is prompted, each with equal probability. Other objects do
nothing, and no object blocks the way.
Source: Pasukonis et al. (2022), "Evaluating Long-Term Memory in 3D Mazes",
https://arxiv.org/abs/2210.13383, whose settings the mazes have. The grid is ours.
Observation: [for each of the 5 x 5 cells around the agent, row by row, turned so that ahead is up:
wall, objects one-hot; prompted object one-hot]. Walls do not block the view. With
`extra_observations`, a Dict of this `view` and of what the agent does not see.
Action: 0 nothing, 1 turn left, 2 turn right, 3 forward.
Reward: 1 for entering the prompted object's cell.
Episode length: 1,000 to 4,000 steps by size; the end is a truncation. `success` is always 0: the
return measures the agent. `grid_explorer.py` has players that plan: the oracle, which knows the
maze, has mean returns of 93, 159, 200 and 242 in 64 mazes of each size, an upper bound for agents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.env_keys import TEACHER_KEY
from mtxl_rl.envs.memory_maze.curriculum import (
    check_curriculum,
    has_curriculum,
    no_curriculum,
    point_of_seed,
    size_to_play,
    steps_to_play,
    with_targets,
)
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES, MazeSize
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import RandomStreams, Rows
from mtxl_rl.envs.tasks.canvas import (
    DARK,
    GRAY,
    PALETTE,
    WHITE,
    Image,
    add_border,
    draw_cells,
)
from mtxl_rl.envs.tasks.vector_task import (
    Flags,
    Outcome,
    TaskDescription,
    VectorTask,
    check_at_least,
)
from mtxl_rl.envs.tasks.walker import FORWARD, LEFT, NUM_HEADINGS, RIGHT
from mtxl_rl.envs.wrappers.checked import Observations

if TYPE_CHECKING:
    from mtxl_rl.envs.tasks.grid_explorer import GridExplorer


VIEW = 5
"""Cells on a side of the agent's view."""
REACH = VIEW // 2
FREE, WALL, _FIRST_OBJECT = 0, 1, 2
_STEPS_PER_SECOND = 4
"""As many actions as in Memory Maze."""
TASK_SIZES = ("9x9", "11x11", "13x13", "15x15")
_DIRECTIONS = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]], np.float32)
"""Rows and columns of a step forward, by heading."""


@dataclass(kw_only=True, slots=True)
class GridMemoryMazeConfig:
    """Options of ``env=GridMemoryMaze``."""

    TEACHERS: ClassVar[tuple[str, ...]] = ("explorer", "oracle")

    name: str = "GridMemoryMaze"
    """The environment's name in the registry."""
    size: str = "9x9"
    """9x9, 11x11, 13x13 or 15x15: 3 to 6 objects, 1,000 to 4,000 steps."""
    episode_length: int = 0
    """Steps of an episode; 0: those of the size. In short episodes there is less to remember."""
    curriculum: dict[str, float] = field(default_factory=dict)
    """Shares of the episodes that are played in smaller mazes, inside the walls of the full size,
    as in ``{7x7: 0.3, 9x9: 0.3}``. For training only: evaluations play the full size."""
    curriculum_steps: int = 0
    """Steps of each environment over which these shares fall to 0; 0: they stay."""
    curriculum_episode_length: int = 0
    """Steps of the first episodes in training, which grow to the task's over `curriculum_steps`, so
    that there are many mazes at first; 0: every episode has the task's."""
    extra_observations: bool = False
    """Observe a dict of the view, the maze, and places (rows and columns): of the agent, with its
    direction, of the objects, and of those that were in view in this episode (-1 for the others).
    Vectors, in cells to the right and ahead, lead to the objects, to those that were in view (0 for
    the others), to where the episode began, and to where the agent was a step ago. Its directions
    there are vectors likewise."""
    teacher: str = ""
    """Report the logits of a player: ``explorer`` (it knows what it has seen) or ``oracle`` (it
    knows the maze). ``teacher.policy`` sets it. For training only."""

    def __post_init__(self) -> None:
        check_choice("env.size", self.size, TASK_SIZES)
        check_at_least("episode_length", self.episode_length, least=0, example=200)
        check_curriculum(self)
        if self.teacher:
            check_choice("env.teacher", self.teacher, self.TEACHERS)

    def for_evaluation(self) -> "GridMemoryMazeConfig":
        """Return the task itself, without the curriculum and the teacher."""
        return replace(self, **no_curriculum(), teacher="")

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.episode_length or round(SIZES[self.size].episode_seconds * _STEPS_PER_SECOND)

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        size = SIZES[self.size]
        return TaskDescription(
            horizon=self.steps_per_episode,
            # On the full size objects lie in different rooms, so each takes at least two steps.
            reward_range=(0.0, self.steps_per_episode / 2),
            remembered=f"a maze and where {size.num_targets} objects lie in it",
            memory_window=self.steps_per_episode - 1,
        )


class GridMemoryMaze(VectorTask):
    """Memory Maze on a grid; see the module's docstring."""

    config: GridMemoryMazeConfig
    state_names = (
        "world", "objects", "cell", "heading", "prompt", "first_cell", "first_heading",
        "last_cell", "last_heading", "is_seen", "is_practice", "steps_of_episode",
        "steps_since_seeding",
    )  # fmt: skip
    options_outside_state = (*no_curriculum(), "episode_length")

    def __init__(
        self, config: GridMemoryMazeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.size = SIZES[config.size]
        self.num_objects = num_objects = self.size.num_targets
        self.stride = stride = self.size.grid + 2 * REACH
        """Cells on a side of `world`, with outer walls and a rim as wide as the view reaches."""
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=_observation_space(self.size, extra=config.extra_observations),
            num_actions=4,
        )
        self.has_extra = config.extra_observations
        self.has_teacher = bool(config.teacher)
        self.world = np.full((num_envs, stride**2), WALL, dtype=np.int8)
        """Content of each cell (row * stride + column): 0 nothing, 1 wall, 2 .. an object."""
        self.objects = np.zeros((num_envs, num_objects), dtype=np.int64)
        """Each object's cell."""
        self.cell = np.full(num_envs, REACH * stride + REACH)
        """The agent's cell."""
        self.heading = np.zeros(num_envs, dtype=np.int64)
        """The agent's heading: north, west, south, east."""
        self.prompt = np.zeros(num_envs, dtype=np.int64)
        """The prompted object."""
        self.first_cell, self.first_heading = self.cell.copy(), self.heading.copy()
        self.last_cell, self.last_heading = self.cell.copy(), self.heading.copy()
        """Where the agent was a step ago."""
        self.is_seen = np.zeros((num_envs, num_objects), dtype=np.bool_)
        """Whether each object was in view in this episode; with `extra_observations` only."""
        self.is_practice = np.zeros(num_envs, dtype=np.bool_)
        """Whether the curriculum made the maze smaller or the episode shorter."""
        self.steps_of_episode = np.full(num_envs, config.steps_per_episode)
        """Length of each row's episode."""
        self.ahead = np.array([-stride, -1, stride, 1])
        """Offset of the cell ahead, by heading."""
        self._first_cell = (self.all_rows * stride**2)[:, None]
        self._view = _view_offsets(stride)
        self._one_hot = np.eye(2 + num_objects, dtype=np.float32)[:, 1:]
        self._player = None
        if config.teacher:
            self._player = self._explorer(knows_maze=config.teacher == "oracle")

    def _start(self, rows: Rows) -> None:
        num_objects = self.num_objects
        draws = self.streams.uniform(rows, 4)
        config = self.config
        sizes = self._next_sizes(rows)
        self.steps_of_episode[rows] = self._next_lengths(rows)
        is_smaller = np.array(sizes) != config.size
        is_shorter = self.steps_of_episode[rows] < config.steps_per_episode
        self.is_practice[rows] = is_smaller | is_shorter
        self.heading[rows] = np.floor(draws[:, 1] * NUM_HEADINGS)
        self.prompt[rows] = np.floor(draws[:, 2] * num_objects)
        for row, size, (seed, _, _, spawn) in zip(rows, sizes, draws, strict=True):
            world, places, spawns = self._lay_out(size, seed=1 + int(seed * (2**31 - 2)))
            self.world[row] = world
            order = self.streams.permutations(np.array([row]), len(places))[0]
            self.objects[row] = places[order[:num_objects]]
            self.world[row, self.objects[row]] = _FIRST_OBJECT + np.arange(num_objects)
            self.cell[row] = spawns[int(spawn * len(spawns))]
        self.is_seen[rows] = False
        self.first_cell[rows], self.first_heading[rows] = self.cell[rows], self.heading[rows]
        self.last_cell[rows], self.last_heading[rows] = self.cell[rows], self.heading[rows]

    def _next_sizes(self, rows: Rows) -> list[str]:
        """Return the size of each row's next maze, at random if there is a curriculum of sizes."""
        if not self.config.curriculum:
            return [self.config.size] * len(rows)
        points, steps = self.streams.uniform(rows, 1)[:, 0], self.steps_since_seeding[rows]
        return [
            size_to_play(self.config, point=float(point), num_steps=int(num_steps))
            for point, num_steps in zip(points, steps, strict=True)
        ]

    def _next_lengths(self, rows: Rows) -> list[int]:
        """Return the length of each row's next episode, at random if lengths grow."""
        if not self.config.curriculum_episode_length:
            return [self.config.steps_per_episode] * len(rows)
        points, steps = self.streams.uniform(rows, 1)[:, 0], self.steps_since_seeding[rows]
        return [
            steps_to_play(
                self.config,
                point=float(point),
                phase=point_of_seed(int(row)),
                num_steps=int(num_steps),
            )
            for row, point, num_steps in zip(rows, points, steps, strict=True)
        ]

    def _lay_out(
        self, size_name: str, *, seed: int
    ) -> tuple[NDArray[np.int8], NDArray[Any], NDArray[Any]]:
        """Return the walls, cells in the rooms for objects, and one in each for the agent.

        A maze that is smaller than `world` lies in its middle.
        """
        # Imported here because numba takes a moment.
        from mtxl_rl.envs.memory_maze import text_maze
        from mtxl_rl.envs.memory_maze.layout import maze_settings

        size = with_targets(SIZES[size_name], num_targets=self.num_objects)
        mazes = text_maze.TextMazeGenerator(maze_settings(size), seed=seed)
        cells = mazes.next_maze().cells
        while (cells == text_maze.OBJECT).sum() < self.num_objects:
            cells = mazes.next_maze().cells
        margin = (self.stride - size.grid) // 2
        cells = np.pad(cells, margin, constant_values=text_maze.WALL).ravel()
        walls = np.where(cells == text_maze.WALL, WALL, FREE).astype(np.int8)
        return (
            walls,
            np.flatnonzero(cells == text_maze.OBJECT),
            np.flatnonzero(cells == text_maze.SPAWN),
        )

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        self.last_cell, self.last_heading = self.cell, self.heading
        self.heading = (self.heading + (actions == LEFT) - (actions == RIGHT)) % NUM_HEADINGS
        ahead = self.cell + self.ahead[self.heading]
        moves = live & (actions == FORWARD) & (self.world[self.all_rows, ahead] != WALL)
        self.cell = np.where(moves, ahead, self.cell)
        touches = moves & (self.cell == self.objects[self.all_rows, self.prompt])
        rows = np.flatnonzero(touches)
        if rows.size:
            others = self.num_objects - 1
            step = 1 + self.streams.integers(rows, others, 1)[:, 0]
            self.prompt[rows] = (self.prompt[rows] + step) % self.num_objects
        self.steps_since_seeding += 1
        out_of_time = self.step_index + 1 >= self.steps_of_episode
        never = np.zeros_like(touches)
        return Outcome(touches, never, out_of_time, never)

    def _streams(self, seed: int | Sequence[int]) -> RandomStreams:
        """Streams for a seed; the curriculum starts again."""
        streams = super()._streams(seed)
        self.steps_since_seeding = np.zeros(self.num_envs, dtype=np.int64)
        return streams

    def _info(self) -> dict[str, Any]:
        """What a curriculum and a teacher report.

        Where an episode ends, whether it was practice; after each action, minus the steps to the
        teacher's goal.
        """
        infos: dict[str, Any] = {}
        if (has_curriculum(self.config) or self.is_practice.any()) and self.is_reset_row.any():
            infos |= {
                "is_practice": self.is_practice.copy(),
                "_is_practice": self.is_reset_row.copy(),
            }
        if self._player is not None and self.has_teacher:
            self._player.look()
            every = np.ones(self.num_envs, np.bool_)
            infos |= {TEACHER_KEY: -self._player.costs(), f"_{TEACHER_KEY}": every}
        return infos

    def player(
        self, name: str, *, memory_steps: int | None = None
    ) -> Callable[[], NDArray[np.int64]]:
        """The actions [B] of a player of `TEACHERS`, to be called at every step.

        An explorer forgets what it last saw more than `memory_steps` steps ago; None: nothing.
        """
        return self._explorer(memory_steps=memory_steps, knows_maze=name == "oracle").act

    def _explorer(self, **options: Any) -> "GridExplorer":  # noqa: ANN401
        # Imported here because numba takes a moment.
        from mtxl_rl.envs.tasks.grid_explorer import GridExplorer

        return GridExplorer(self, **options)

    def target_ages(self) -> NDArray[np.int64]:
        """Steps since each object was last in view, [B, objects]; -1: never in this episode.

        Call it at every step.
        """
        if self._player is None:
            self._player = self._explorer()
        self._player.look()
        return self._player.ages(self.objects)

    def cells_in_view(self) -> NDArray[np.int64]:
        """The 25 cells around each agent, row by row, turned so that ahead is up, [B, 25]."""
        view: NDArray[np.int64] = self.cell[:, None] + self._view[self.heading]
        return view

    def _observe(self) -> Observations:
        cells = self.cells_in_view()
        seen = self.world.take(self._first_cell + cells)
        num_seen = VIEW**2 * (1 + self.num_objects)
        view = np.zeros((self.num_envs, num_seen + self.num_objects), np.float32)
        one_hot = self._one_hot.take(seen, axis=0)
        view[:, :num_seen] = one_hot.reshape(self.num_envs, num_seen)
        view[self.all_rows, num_seen + self.prompt] = 1
        if not self.has_extra:
            return view
        self.is_seen |= one_hot[:, :, 1:].any(axis=1)
        return {"view": view, **self._extra_observations()}

    def _extra_observations(self) -> dict[str, NDArray[Any]]:
        stride, cells = self.stride, self.size.side
        prompted, headings = (self.all_rows, self.prompt), _DIRECTIONS
        ahead, right = headings[self.heading], headings[self.heading - 1]
        axes = np.stack([right, ahead], axis=2)
        place, objects = self._row_and_column(self.cell), self._row_and_column(self.objects)
        vectors = (objects - place[:, None]) @ axes
        seen_objects = np.where(self.is_seen[:, :, None], objects, np.float32(-1))
        ways_back: dict[str, NDArray[Any]] = {}
        for name, cell, heading in (
            ("first", self.first_cell, self.first_heading),
            ("last", self.last_cell, self.last_heading),
        ):
            back = self._row_and_column(cell) - place
            ways_back[f"{name}_vec"] = (back[:, None] @ axes)[:, 0]
            ways_back[f"{name}_dir"] = (headings[heading][:, None] @ axes)[:, 0]
        inside = np.s_[:, REACH + 1 : -REACH - 1, REACH + 1 : -REACH - 1]
        world = self.world.reshape(self.num_envs, stride, stride)[inside]
        return {
            "agent_pos": place,
            "agent_dir": ahead,
            "targets_pos": objects,
            "target_pos": objects[prompted],
            "seen_targets_pos": seen_objects,
            "seen_target_pos": seen_objects[prompted],
            "targets_vec": vectors,
            "seen_targets_vec": vectors * self.is_seen[:, :, None],
            "target_vec": vectors[prompted],
            **ways_back,
            "maze_layout": (world != WALL).astype(np.uint8).reshape(-1, cells, cells),
        }

    def _row_and_column(self, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of cells of `world`, counted in the maze without its outer walls."""
        return np.stack(np.divmod(cells, self.stride), axis=-1).astype(np.float32) - REACH - 1

    def _all_state_names(self) -> tuple[str, ...]:
        names = super()._all_state_names()
        return (*names, "seen_at") if self.has_teacher else names

    @property
    def seen_at(self) -> NDArray[np.int32]:
        """The step at which the player last saw each cell, [B, cells], if there is a player."""
        assert self._player is not None
        return self._player.seen_at

    @seen_at.setter
    def seen_at(self, seen_at: NDArray[np.int32]) -> None:
        assert self._player is not None
        self._player.seen_at = seen_at

    def _draw(self, row: int) -> Image:
        """The maze, dark where the agent does not see it, framed in the prompted object's colour.

        The agent is white, and a white mark lies on the cell ahead.
        """
        stride = self.stride
        palette = np.array([DARK, GRAY, *PALETTE], dtype=np.uint8)
        colors = palette[self.world[row]] // 2
        in_view = self.cells_in_view()[row]
        colors[in_view] = palette[self.world[row, in_view]]
        colors[self.cell[row]] = WHITE
        ahead_row, ahead_column = divmod(
            int(self.cell[row] + self.ahead[self.heading[row]]), stride
        )
        grid = colors.reshape(stride, stride, 3)
        image = draw_cells(grid, marks=[(ahead_row, ahead_column, WHITE)])
        return add_border(image, PALETTE[self.prompt[row]])


def _observation_space(size: MazeSize, *, extra: bool) -> spaces.Space[Any]:
    """Observation space of one environment."""
    view = spaces.Box(0.0, 1.0, (VIEW**2 * (1 + size.num_targets) + size.num_targets,), np.float32)
    if not extra:
        return view

    def numbers(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    return spaces.Dict(
        {
            "view": view,
            "agent_pos": numbers(2),
            "agent_dir": numbers(2),
            "targets_pos": numbers(size.num_targets, 2),
            "target_pos": numbers(2),
            "seen_targets_pos": numbers(size.num_targets, 2),
            "seen_target_pos": numbers(2),
            "targets_vec": numbers(size.num_targets, 2),
            "seen_targets_vec": numbers(size.num_targets, 2),
            "target_vec": numbers(2),
            "first_vec": numbers(2),
            "first_dir": numbers(2),
            "last_vec": numbers(2),
            "last_dir": numbers(2),
            "maze_layout": spaces.Box(0, 1, (size.side, size.side), np.uint8),
        }
    )


def _view_offsets(stride: int) -> NDArray[np.int64]:
    """Return the offset of each cell in view, [headings, 25]; cells ahead come first."""
    grid = np.arange(-REACH, REACH + 1)
    north = grid[:, None] * stride + grid
    # Facing west, the cells ahead are to the left: rows of the view are columns of the world.
    return np.stack([np.rot90(north, -turns).ravel() for turns in range(NUM_HEADINGS)])
