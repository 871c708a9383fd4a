"""The tasks of Memory Maze by size and variant. Importing this module loads nothing else."""

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import ClassVar

from mtxl_rl.envs.memory_maze.curriculum import check_curriculum, no_curriculum
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES, MazeSize
from mtxl_rl.envs.memory_maze.texture_files import (
    AUTO,
    DOWNLOAD_COMMAND,
    ORIGINAL,
    PROCEDURAL,
    TEXTURE_CHOICES,
    original_folder,
)
from mtxl_rl.envs.names import check_choice

CELL = 2.0
"""Side of a cell in metres."""
SUBSTEP_SECONDS = 0.005
"""The original's physics time step."""
TARGET_RADIUS = 0.6
BALL_RADIUS = 0.2
ROLL_SPEED, TURN_SPEED = 2.0, 1.28
"""Metres and radians a second of a walker that holds an action."""
ROLL_LAG, TURN_LAG = 0.2, 0.13
"""Seconds in which its speeds follow the controls: it comes to rest this much later."""
TARGET_COLORS = (
    (170 / 220, 38 / 220, 30 / 220),  # red
    (99 / 220, 170 / 220, 88 / 220),  # green
    (39 / 220, 140 / 220, 217 / 220),  # blue
    (93 / 220, 105 / 220, 199 / 220),  # purple
    (220 / 220, 193 / 220, 59 / 220),  # yellow
    (220 / 220, 128 / 220, 107 / 220),  # salmon
)
ACTIONS = (
    (0.0, 0.0),
    (-1.0, 0.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (-1.0, -1.0),
    (-1.0, 1.0),
)
"""(roll, steer) of noop, forward, left, right, forward + left, forward + right."""
TEACHER_FREQ = 4.0
"""Actions a second of the players that plan."""
MIN_RESOLUTION, MAX_RESOLUTION = 64, 512


@dataclass(kw_only=True, slots=True)
class MemoryMazeConfig:
    """Options of ``env=MemoryMaze``; the variants' options have the original's names."""

    TEACHERS: ClassVar[tuple[str, ...]] = ("explorer", "oracle")

    name: str = "MemoryMaze"
    """The environment's name in the registry; leave it."""
    size: str = "9x9"
    """Cells without the outer wall: 9x9, 11x11, 13x13, 15x15 as in the original, or any other odd
    side from 5x5 to 31x31; 9 means 9x9."""
    good_visibility: bool = False
    """Low walls, and spheres that float above them (``Vis``)."""
    camera_resolution: int = 64
    """Pixels on a side of the picture, 64 to 512 (256 is ``HD``)."""
    top_camera: bool = False
    """Look from above the maze instead of from the walker (``Top``)."""
    extra_observations: bool = False
    """Observations are a dict of the image and the positions of all objects (``ExtraObs``)."""
    seen_observations: bool = False
    """The extra observations also give what the picture shows and what a perfect memory knows, for
    ``auxiliary.predict``: vectors to the objects in view, and vectors and positions of those that
    were in view in the episode (0 and -1 for others), and the ways back to its start and to where
    the agent was a step ago."""
    show_path: bool = False
    """Draw a map with the shortest path into the picture (``Oracle``)."""
    control_freq: float = 4.0
    """Actions a second (40 is ``HiFreq``): 200 / control_freq must be a whole number."""
    randomize_colors: bool = False
    """Each episode draws its spheres' colours from all six (``6CL``)."""
    discrete_actions: bool = True
    """The six actions; if false, an action is [roll, steer] in [-1, 1], and roll -1 is forward."""
    episode_length: int = 0
    """Actions of an episode; 0: the original's, 1,000 to 4,000 at 4 actions a second."""
    curriculum: dict[str, float] = field(default_factory=dict)
    """Shares of the environments that play smaller mazes, inside the walls of the full size, as in
    ``{5x5: 0.3, 7x7: 0.3}``. For training only: evaluations play the full size."""
    curriculum_steps: int = 0
    """Steps of each environment over which these shares fall to 0; 0: they stay."""
    curriculum_episode_length: int = 0
    """Steps of the first episodes in training, which grow to the task's over `curriculum_steps`, so
    that there are many mazes at first; 0: every episode has the task's."""
    progress_reward: float = 0.0
    """Reward for each cell gained on the path of a player that knows only what it has seen, in
    addition to the task's. For training only: returns and the policy's inputs have the task's
    reward, and evaluations do not compute it."""
    teacher: str = ""
    """A player whose logits are in each step's info: ``explorer`` (it knows what it has seen) or
    ``oracle`` (it knows the maze). ``teacher.policy`` sets it. For training only."""
    original_quirks: bool = True
    """Keep two faults of the original that seeds depend on; see `layout.py`."""
    num_threads: int = 0
    """Threads that share the environments; 0: one for each core."""
    textures: str = AUTO
    """Pictures of walls and floors: ``original``, ``procedural`` (other patterns in the same
    colours), or ``auto``: the original's if this machine has them. A config holds what auto chose,
    so that a run keeps its pictures."""

    def __post_init__(self) -> None:
        """Check ranges, and choose the textures."""
        side = str(self.size)
        self.size = f"{side}x{side}" if side.isdecimal() else side
        check_choice("env.size", self.size, SIZES)
        if not MIN_RESOLUTION <= self.camera_resolution <= MAX_RESOLUTION:
            raise ValueError(
                f"env.camera_resolution={self.camera_resolution} must be from {MIN_RESOLUTION} to "
                f"{MAX_RESOLUTION}, e.g. env.camera_resolution=64."
            )
        substeps = 1 / SUBSTEP_SECONDS / self.control_freq if self.control_freq > 0 else 0.0
        if substeps < 1 or abs(substeps - round(substeps)) > 1e-9:
            raise ValueError(
                f"env.control_freq={self.control_freq} must divide 200 substeps a second, e.g. "
                "env.control_freq=4."
            )
        if self.episode_length < 0:
            raise ValueError(
                f"env.episode_length={self.episode_length} must be 0 (the original's) or a number "
                "of actions, e.g. env.episode_length=1000."
            )
        self._check_training_options()
        if self.seen_observations and not self.extra_observations:
            raise ValueError(
                "env.seen_observations=true adds to the extra observations: add "
                "env.extra_observations=true."
            )
        if self.num_threads < 0:
            raise ValueError(
                f"env.num_threads={self.num_threads} must be 0 (one for each core) or a number of "
                "threads, e.g. env.num_threads=1."
            )
        check_choice("env.textures", self.textures, TEXTURE_CHOICES)
        if self.textures == AUTO:
            self.textures = _available_textures()

    def _check_training_options(self) -> None:
        if self.teacher:
            check_choice("env.teacher", self.teacher, self.TEACHERS)
            if not (self.discrete_actions and self.control_freq == TEACHER_FREQ):
                raise ValueError(
                    f"env.teacher={self.teacher} plays with discrete actions, {TEACHER_FREQ:g} a "
                    "second: env.discrete_actions=true env.control_freq=4."
                )
        if not 0 <= self.progress_reward < math.inf:
            raise ValueError(
                f"env.progress_reward={self.progress_reward} must be 0 (none) or more, e.g. "
                "env.progress_reward=0.1."
            )
        check_curriculum(self)

    def for_evaluation(self) -> "MemoryMazeConfig":
        """Return the task itself, without the curriculum, the progress reward and the teacher."""
        return replace(self, **no_curriculum(), progress_reward=0.0, teacher="")

    @property
    def maze_size(self) -> MazeSize:
        """The settings of the size."""
        return SIZES[self.size]

    @property
    def num_substeps(self) -> int:
        """Physics steps of one action."""
        return round(1 / SUBSTEP_SECONDS / self.control_freq)

    @property
    def steps_per_episode(self) -> int:
        """Actions of an episode."""
        return self.episode_length or round(self.maze_size.episode_seconds * self.control_freq)

    @property
    def wall_height(self) -> float:
        """Height of the walls in metres."""
        return 0.4 if self.good_visibility else 1.5

    @property
    def target_height(self) -> float:
        """Height of the spheres' centres in metres."""
        return 1.1 if self.good_visibility else 0.0


def _available_textures() -> str:
    if original_folder() is not None:
        return ORIGINAL
    warnings.warn(
        "Memory Maze draws procedural textures: its pictures differ from the original's. Download "
        f"the original's with {DOWNLOAD_COMMAND}, or set env.textures=procedural to accept them.",
        stacklevel=1,
    )
    return PROCEDURAL


VARIANTS: dict[str, dict[str, bool | int | float]] = {
    "": {},
    "-Vis": {"good_visibility": True},
    "-HD": {"camera_resolution": 256},
    "-Top": {"camera_resolution": 256, "top_camera": True},
    "-ExtraObs": {"extra_observations": True},
    "-ExtraObs-Vis": {"extra_observations": True, "good_visibility": True},
    "-ExtraObs-Top": {"extra_observations": True, "camera_resolution": 256, "top_camera": True},
    "-Oracle": {"show_path": True},
    "-Oracle-Top": {"show_path": True, "camera_resolution": 256, "top_camera": True},
    "-Oracle-ExtraObs": {"extra_observations": True, "show_path": True},
    "-HiFreq": {"control_freq": 40.0},
    "-HiFreq-Vis": {"control_freq": 40.0, "good_visibility": True},
    "-HiFreq-HD": {"control_freq": 40.0, "camera_resolution": 256},
    "-6CL": {"randomize_colors": True},
    "-6CL-Top": {"randomize_colors": True, "camera_resolution": 256, "top_camera": True},
    "-6CL-ExtraObs": {"randomize_colors": True, "extra_observations": True},
}
"""The original's registered variants, by the end of their names."""
