"""The original Memory Maze's episodes, stepped and drawn by MuJoCo.

The package memory-maze still draws every random number, generates the maze, places walker and
targets and decides the rewards. This module replaces dm_control's Python code that runs in every
substep and frame. A comment at each shortcut explains why results stay equal, and
tests/envs/memory_maze_original compares rewards and frames with the package.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze_original.original_packages import import_packages
from mtxl_rl.envs.memory_maze_original.rendering import Renderer

FRAME_SIDE = 64
CONTROL_STEPS_PER_SECOND = 4

# memory_maze.tasks: (roll, steer) for noop, forward, left, right, forward + left, forward + right.
ACTIONS = np.array(
    [[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]], np.float64
)

_BORDER = 2  # pixels in the target's colour around the frame

# A sphere is touched when its centre is within 0.8 m of the ball's; no other part of the walker
# reaches further. The ball's top speed is 2 m/s or 0.5 m in a control step, so a ball that starts a
# step 2 m away cannot touch: 1.2 m is more than twice the distance it can move.
_REACH = 0.8 + 1.2


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalMazeSize:
    """Settings of one of the original's sizes (memory_maze.tasks)."""

    cells: int
    num_targets: int
    seconds: int
    max_rooms: int = 6
    room_max_size: int = 5


SIZES = {
    "9x9": OriginalMazeSize(cells=9, num_targets=3, seconds=250),
    "11x11": OriginalMazeSize(cells=11, num_targets=4, seconds=500),
    "13x13": OriginalMazeSize(cells=13, num_targets=5, seconds=750),
    "15x15": OriginalMazeSize(cells=15, num_targets=6, seconds=1000, max_rooms=9, room_max_size=3),
}


class Simulation:
    """An endless stream of episodes, equal to the original's with the same seed."""

    def __init__(self, size: OriginalMazeSize, *, seed: int | None) -> None:
        import_packages()
        # The original subtracts this too, so that the sum of 5 ms steps reaches the limit.
        self.time_limit_seconds = size.seconds - 1e-3
        self._random = np.random.RandomState(seed)
        self._task = _build_task(size, random=self._random)
        self._renderer = Renderer(side=FRAME_SIDE)
        self._physics: Any = None

    def reset(self) -> NDArray[np.uint8]:
        """Start the next episode and return its first frame [64, 64, 3].

        Hooks run in the order of dm_control's composer.Environment. Its other hooks are empty or
        prepare observations that Memory Maze does not have.
        """
        from dm_control import mjcf

        entities = list(self._task.root_entity.iter_entities())
        self._task.initialize_episode_mjcf(self._random)
        for entity in entities:
            entity.initialize_episode_mjcf(self._random)
        if self._physics is not None:
            self._physics.free()
        self._physics = mjcf.Physics.from_mjcf_model(self._task.root_entity.mjcf_model)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics, self._random)
            for entity in entities:
                entity.initialize_episode(self._physics, self._random)
        self._bind_to_model()
        return self._frame()

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool]:
        """Run a control step of 0.25 s; return the frame, the reward and whether the time is up."""
        self._data.ctrl[:] = ACTIONS[action]
        if self._a_target_is_within_reach():
            self._advance_and_watch_targets()
        else:
            self._advance()
        if self._data.warning.number.sum() != self._num_warnings:
            raise RuntimeError(
                "MuJoCo reports that the simulation became invalid, where the original raises "
                "PhysicsError; call reset() to continue."
            )
        self._task.after_step(self._physics, self._random)
        reward = float(self._task.get_reward(self._physics))
        return self._frame(), reward, bool(self._data.time >= self.time_limit_seconds)

    def close(self) -> None:
        """Free the model and the graphics; a second call does nothing."""
        self._renderer.close()
        if self._physics is not None:
            self._physics.free()
            self._physics = None

    def _bind_to_model(self) -> None:
        """Look up the parts of the episode's compiled model that the steps use.

        The task's private names belong to memory-maze, whose version the extra pins.
        """
        bind = self._physics.bind
        walker = self._task._walker
        self._model, self._data = self._physics.model.ptr, self._physics.data.ptr
        self._ball_id = int(bind(walker.ground_contact_geoms[0]).element_id)
        self._targets = {int(bind(t.geom).element_id): t for t in self._task._targets}
        self._target_ids = list(self._targets)
        self._num_warnings = self._data.warning.number.sum()
        camera = int(bind(walker.egocentric_camera).element_id)
        self._renderer.load(self._model, camera=camera)

    def _a_target_is_within_reach(self) -> bool:
        positions = self._data.geom_xpos
        offsets = positions[self._target_ids, :2] - positions[self._ball_id, :2]
        return bool((np.square(offsets).sum(axis=1) < _REACH**2).any())

    def _advance(self) -> None:
        """Run all substeps in three calls, because no hook needs the state between them.

        dm_control's substep is mj_step2 then mj_step1 (its "legacy" order, which leaves positions
        and velocities up to date), and mj_step is mj_step1 then mj_step2.
        """
        import mujoco

        mujoco.mj_step2(self._model, self._data)
        mujoco.mj_step(self._model, self._data, self._task.physics_steps_per_control_step - 1)
        mujoco.mj_step1(self._model, self._data)

    def _advance_and_watch_targets(self) -> None:
        """Run the substeps one by one; a target counts as touched after contact in any substep.

        The original checks all contacts in Python for every target. Here its hook runs only in
        substeps with a contact of that target; in others it has no effect.
        """
        import mujoco

        for _ in range(self._task.physics_steps_per_control_step):
            mujoco.mj_step2(self._model, self._data)
            mujoco.mj_step1(self._model, self._data)
            in_contact = self._data.contact.geom.ravel().tolist()
            for geom_id, target in self._targets.items():
                if geom_id in in_contact:
                    target.after_substep(self._physics, self._random)

    def _frame(self) -> NDArray[np.uint8]:
        """Return the walker's view with the border of memory_maze's TargetColorAsBorderWrapper."""
        frame = self._renderer.draw(self._model, self._data)
        target_color = self._task._target_colors[self._task._current_target_ix]
        color = (target_color * 255 * 0.7).astype(np.uint8)
        frame[:, :_BORDER] = color
        frame[:, -_BORDER:] = color
        frame[:_BORDER] = color
        frame[-_BORDER:] = color
        return frame


def _build_task(size: OriginalMazeSize, *, random: Any) -> Any:  # noqa: ANN401 - dm_control has no types
    """Build the task as memory_maze.tasks._memory_maze does, with two differences.

    - The ten wall variations share one set of textures; the original loads the same eight images
      ten times (88 textures, 600 MB). Each variation still chooses among eight, so the random draws
      are unchanged.
    - MuJoCo's off-screen buffer has the frame's size instead of 640 x 480.

    The only random draw, the layout generator's seed, is the first of the stream, as in the
    original.
    """
    from dm_control.locomotion.arenas import labmaze_textures
    from memory_maze import maze

    variations = labmaze_textures.WallTextures("style_01")
    walker = maze.RollingBallWithFriction(camera_height=0.3, add_ears=False)
    arena = maze.MazeWithTargetsArena(
        x_cells=size.cells + 2,
        y_cells=size.cells + 2,
        xy_scale=2.0,
        z_height=1.5,
        max_rooms=size.max_rooms,
        room_min_size=3,
        room_max_size=size.room_max_size,
        spawns_per_room=1,
        targets_per_room=1,
        floor_textures=maze.FixedFloorTexture("style_01", ["blue", "blue_bright"]),
        wall_textures={
            "*": maze.FixedWallTexture("style_01", "yellow"),
            **{str(i): variations for i in range(10)},
        },
        skybox_texture=None,
        random_seed=random.randint(2147483648),
    )
    task = maze.MemoryMazeTask(
        walker=walker,
        maze_arena=arena,
        n_targets=size.num_targets,
        target_radius=0.6,
        target_height_above_ground=-0.6,
        enable_global_task_observables=True,
        control_timestep=1.0 / CONTROL_STEPS_PER_SECOND,
        camera_resolution=FRAME_SIDE,
    )
    buffer = getattr(arena.mjcf_model.visual, "global")
    buffer.offwidth = buffer.offheight = FRAME_SIDE
    return task
