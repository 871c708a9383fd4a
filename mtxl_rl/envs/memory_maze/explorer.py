"""The explorer: a player that knows only what it has seen.

Rays across the camera's view mark cells as seen: a wall that a ray meets, and a floor cell whose
middle a ray crosses, where a sphere would be. Until it has seen the cell of the prompted sphere, it
walks to the nearest cell that it has not seen. Then it takes the shortest path on which it knows of
no wall. It may forget what it last saw more than `memory_steps` steps ago.

It knows its own place, heading and velocity.

Places are in cells here: x counts columns, y counts rows from the top.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.camera import AHEAD, TAN_HALF_VIEW
from mtxl_rl.envs.memory_maze.kernels import claim, inlined, kernel
from mtxl_rl.envs.memory_maze.spec import (
    ACTIONS,
    CELL,
    ROLL_LAG,
    ROLL_SPEED,
    TARGET_RADIUS,
    TURN_LAG,
    TURN_SPEED,
)

_SECONDS = 0.25  # of a move; see `_costs_to_go`
_ROLL, _TURN = ROLL_SPEED * _SECONDS / CELL, TURN_SPEED * _SECONDS  # cells and radians of a move
_TURN_WEIGHT = 1.5
_CONTROLS = np.array(ACTIONS)
_NUM_RAYS = 41
_MIDDLE = TARGET_RADIUS / CELL  # cells around a cell's centre that a sphere would fill
_HALF_WIDTH = 0.14  # cells that a straight walk keeps free on either side
_MAX_CELLS_AHEAD = 8
_NEVER = -(2**30)
_FAR = 1e9


class ExplorerMemory(NamedTuple):
    """The cells that explorers have seen in their episodes, and their goals."""

    seen_at: Int32[np.ndarray, "B n n"]
    """The step at which each cell was last seen."""
    goal: Float64[np.ndarray, "B 2"]
    """x and y; negative without one."""
    waypoint: Float64[np.ndarray, "B 3"]
    """x and y of the next point on the path to the goal, and the cells between it and the
    walker."""


class Explorer:
    """Explorers of B mazes.

    Args:
        num_envs: Mazes, B.
        grid: Cells on a side with the outer wall, n.
        memory_steps: An explorer forgets what it last saw more than this many steps ago; None:
            nothing.
    """

    def __init__(self, num_envs: int, *, grid: int, memory_steps: int | None = None) -> None:
        if memory_steps is not None and memory_steps < 0:
            raise ValueError(
                f"memory_steps={memory_steps} must be 0 (only what is in view) or more; leave it "
                "out to forget nothing."
            )
        cells = (num_envs, grid, grid)
        self.memory_steps = -_NEVER // 2 if memory_steps is None else memory_steps
        self.memory = ExplorerMemory(
            seen_at=np.full(cells, _NEVER, np.int32),
            goal=np.full((num_envs, 2), -1.0),
            waypoint=np.full((num_envs, 3), -1.0),
        )
        self.actions: Int64[np.ndarray, " B"] = np.zeros(num_envs, np.int64)
        """The action with the lowest cost."""
        self.costs: Float32[np.ndarray, "B 6"] = np.zeros((num_envs, len(ACTIONS)), np.float32)
        """Moves of a quarter of a second to the goal, each action's own included."""
        self.progress: Float32[np.ndarray, " B"] = np.zeros(num_envs, np.float32)
        """Cells by which the last step came nearer to the waypoint that it started with."""

    def update(
        self,
        run_in_threads: Callable[..., None],
        *,
        position: Float64[np.ndarray, "B 5"],
        velocity: Float64[np.ndarray, "B 5"],
        walls: NDArray[np.bool_],
        targets: Float64[np.ndarray, "B targets 2"],
        current: Int64[np.ndarray, " B"],
        episode_step: Int64[np.ndarray, " B"],
    ) -> None:
        """See what is in view and plan; the memory of an episode begins at its step 0.

        A second call in the same step changes nothing but `progress`.
        """
        run_in_threads(
            explore,
            position,
            velocity,
            walls,
            targets,
            current,
            episode_step,
            self.memory_steps,
            self.memory,
            self.actions,
            self.costs,
            self.progress,
        )

    def forget(self, index: int) -> None:
        """Give one explorer an empty memory."""
        _forget(self.memory, index)


@kernel
def explore(
    rows: NDArray[np.int64],
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    walls: NDArray[np.bool_],
    targets: NDArray[np.float64],
    current: NDArray[np.int64],
    episode_step: NDArray[np.int64],
    memory_steps: int,
    memory: ExplorerMemory,
    actions: NDArray[np.int64],
    costs: NDArray[np.float32],
    progress: NDArray[np.float32],
) -> None:
    """One step of each explorer.

    Args:
        rows: The environments that are left; see `kernels.claim`.
        position: [environments, 5]; see `physics.move_walker`.
        velocity: [environments, 5]; likewise.
        walls: [environments, n, n], rows from the top.
        targets: [environments, targets, 2] centres in metres.
        current: [environments] the target that is asked for.
        episode_step: [environments] steps since the episode's start.
        memory_steps: Steps after which something is forgotten.
        memory: Is updated.
        actions: [environments] is filled, like all that follows; see `Explorer`.
        costs: [environments, actions].
        progress: [environments].
    """
    n = walls.shape[1]
    blocked = np.empty((n, n), np.bool_)
    steps = np.empty((n, n), np.int32)
    queue = np.empty((n * n, 2), np.int64)
    e = claim(rows)
    while e >= 0:
        step, heading, seen_at = episode_step[e], position[e, 3], memory.seen_at[e]
        x, y = n / 2 + position[e, 0] / CELL, n / 2 - position[e, 1] / CELL
        target, goal, waypoint = targets[e, current[e]], memory.goal[e], memory.waypoint[e]
        progress[e] = 0.0
        if step == 0:
            _forget(memory, e)
        elif waypoint[0] >= 0.0:
            progress[e] = waypoint[2] - math.hypot(waypoint[0] - x, waypoint[1] - y)
        _look(x, y, heading, walls[e], step, seen_at)
        oldest = step - memory_steps
        _choose_goal(x, y, heading, walls[e], target, oldest, seen_at, goal, blocked, steps, queue)
        cells_after = _choose_waypoint(x, y, goal, steps, blocked, waypoint)
        _count_moves(x, y, heading, velocity[e], waypoint, cells_after, costs[e])
        actions[e] = np.argmin(costs[e])
        e = claim(rows)


@inlined
def _forget(memory: ExplorerMemory, index: int) -> None:
    memory.seen_at[index] = _NEVER
    memory.goal[index] = -1.0
    memory.waypoint[index] = -1.0


@kernel
def _look(
    x: float,
    y: float,
    heading: float,
    walls: NDArray[np.bool_],
    step: int,
    seen_at: NDArray[np.int32],
) -> None:
    """Marks the cells that the camera sees at a place and heading with the step."""
    cos, sin = math.cos(heading), -math.sin(heading)
    column, row = int(x), int(y)
    if math.hypot(x - column - 0.5, y - row - 0.5) < _MIDDLE:
        seen_at[row, column] = step
    eye_x, eye_y = x + AHEAD / CELL * cos, y + AHEAD / CELL * sin
    for k in range(_NUM_RAYS):
        right = TAN_HALF_VIEW * (2.0 * k / (_NUM_RAYS - 1) - 1.0)
        scale = 1.0 / math.hypot(1.0, right)
        dx, dy = scale * (cos - right * sin), scale * (sin + right * cos)
        _trace(walls, eye_x, eye_y, dx, dy, _FAR, seen_at, step)


@kernel
def _trace(
    walls: NDArray[np.bool_],
    x: float,
    y: float,
    dx: float,
    dy: float,
    end: float,
    marks: NDArray[np.int32] | None,
    mark: int,
) -> float:
    """Follows a ray from (x, y) in the unit direction (dx, dy) to the first wall, or to `end`.

    If there are `marks` [n, n], those of the cells that it sees are set to `mark`.

    Returns:
        Its length in cells.
    """
    column, row = int(x), int(y)
    aside, below = (1 if dx > 0.0 else -1), (1 if dy > 0.0 else -1)
    per_column = 1.0 / max(abs(dx), 1e-9)
    per_row = 1.0 / max(abs(dy), 1e-9)
    to_column = (column + 1 - x if dx > 0.0 else x - column) * per_column
    to_row = (row + 1 - y if dy > 0.0 else y - row) * per_row
    while True:
        reached = min(to_column, to_row)
        if reached >= end:
            return end
        if to_column < to_row:
            column += aside
            to_column += per_column
        else:
            row += below
            to_row += per_row
        is_wall = walls[row, column]
        if marks is not None:
            is_middle = abs((column + 0.5 - x) * dy - (row + 0.5 - y) * dx) < _MIDDLE
            if is_wall or is_middle:
                marks[row, column] = mark
        if is_wall:
            return reached


@kernel
def _choose_goal(
    x: float,
    y: float,
    heading: float,
    walls: NDArray[np.bool_],
    target: NDArray[np.float64],
    oldest: int,
    seen_at: NDArray[np.int32],
    goal: NDArray[np.float64],
    blocked: NDArray[np.bool_],
    steps: NDArray[np.int32],
    queue: NDArray[np.int64],
) -> None:
    """Sets the goal, the known walls, and the steps from each cell to the goal.

    The goal is the target if its cell is known, else a cell that is not: the one from before while
    that is unknown and within reach.

    Args:
        x: Of the walker.
        y: Likewise.
        heading: Radians.
        walls: [n, n].
        target: [2] the centre in metres.
        oldest: Cells are known that were seen at this step or later.
        seen_at: [n, n].
        goal: [2] is updated.
        blocked: [n, n] is filled with the known walls.
        steps: [n, n] is filled; see `measure_steps`.
        queue: [n n, 2] is overwritten.
    """
    n = len(walls)
    for row in range(n):
        for column in range(n):
            blocked[row, column] = walls[row, column] and seen_at[row, column] >= oldest
    target_x, target_y = n / 2 + target[0] / CELL, n / 2 - target[1] / CELL
    if seen_at[int(target_y), int(target_x)] >= oldest:
        goal[0], goal[1] = target_x, target_y
        measure_steps(int(target_y), int(target_x), blocked, steps, queue)
        return
    # A goal that was known until the step before, such as a sphere, is forgotten with its cell.
    if goal[0] >= 0.0 and seen_at[int(goal[1]), int(goal[0])] < oldest - 1:
        measure_steps(int(goal[1]), int(goal[0]), blocked, steps, queue)
        if steps[int(y), int(x)] >= 0:
            return
    known_floor = (seen_at >= oldest) & ~blocked
    measure_steps(int(y), int(x), ~known_floor, steps, queue)
    row, column = _nearest_unknown(x, y, heading, oldest, seen_at, steps)
    goal[0], goal[1] = column + 0.5, row + 0.5
    measure_steps(row, column, blocked, steps, queue)


@kernel
def _nearest_unknown(
    x: float,
    y: float,
    heading: float,
    oldest: int,
    seen_at: NDArray[np.int32],
    steps: NDArray[np.int32],
) -> tuple[int, int]:
    """Row and column of the unknown cell that is nearest, counting one ahead as a cell nearer.

    Without any, those of the cell within reach that was seen longest ago.

    Args:
        x: Of the walker.
        y: Likewise.
        heading: Radians.
        oldest: Cells are known that were seen at this step or later.
        seen_at: [n, n].
        steps: [n, n] from the walker through known cells; -1 out of reach.
    """
    n = len(seen_at)
    cos, sin = math.cos(heading), -math.sin(heading)
    best, best_row, best_column = _FAR, -1, -1
    old_row, old_column = int(y), int(x)
    for row in range(n):
        for column in range(n):
            if seen_at[row, column] < oldest:
                to_x, to_y = column + 0.5 - x, row + 0.5 - y
                ahead = (to_x * cos + to_y * sin) / max(math.hypot(to_x, to_y), 1e-9)
                cells = _fewest_steps_around(row, column, steps) - ahead
                if cells < best:
                    best, best_row, best_column = cells, row, column
            is_older = seen_at[row, column] < seen_at[old_row, old_column]
            if is_older and steps[row, column] >= 0:
                old_row, old_column = row, column
    if best >= _FAR - 1.0:
        return old_row, old_column
    return best_row, best_column


@inlined
def _fewest_steps_around(row: int, column: int, steps: NDArray[np.int32]) -> float:
    """The fewest steps of a cell's four neighbours; `_FAR` if they are all out of reach."""
    n = len(steps)
    fewest = _FAR
    for below, aside in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        r, c = row + below, column + aside
        if 0 <= r < n and 0 <= c < n and steps[r, c] >= 0:
            fewest = min(fewest, float(steps[r, c]))
    return fewest


@kernel
def measure_steps(
    row: int,
    column: int,
    blocked: NDArray[np.bool_],
    steps: NDArray[Any],
    queue: NDArray[np.int64],
) -> None:
    """Fills the steps [n, n] from every cell to one cell, breadth first; -1 where there is no way.

    Args:
        row: Of the cell, which may be blocked itself.
        column: Likewise.
        blocked: [n, n].
        steps: [n, n] is filled.
        queue: [n n, 2] is overwritten.
    """
    n = len(blocked)
    steps[:, :] = -1
    steps[row, column] = 0
    queue[0, 0], queue[0, 1] = row, column
    head, tail = 0, 1
    while head < tail:
        r, c = queue[head, 0], queue[head, 1]
        head += 1
        for below, aside in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            i, j = r + below, c + aside
            if 0 <= i < n and 0 <= j < n and not blocked[i, j] and steps[i, j] < 0:
                steps[i, j] = steps[r, c] + 1
                queue[tail, 0], queue[tail, 1] = i, j
                tail += 1


@kernel
def _choose_waypoint(
    x: float,
    y: float,
    goal: NDArray[np.float64],
    steps: NDArray[np.int32],
    blocked: NDArray[np.bool_],
    waypoint: NDArray[np.float64],
) -> float:
    """Sets the waypoint to the last point on the path to the goal that a straight walk reaches.

    Args:
        x: Of the walker.
        y: Likewise.
        goal: [2].
        steps: [n, n] from each cell to the goal.
        blocked: [n, n] the known walls.
        waypoint: [3] is filled.

    Returns:
        The cells from there to the goal.
    """
    n = len(steps)
    row, column = int(y), int(x)
    to_x, to_y, cells_after = goal[0], goal[1], 0.0
    for k in range(_MAX_CELLS_AHEAD):
        if steps[row, column] <= 0:
            break
        nearest, next_row, next_column = _FAR, row, column
        for below, aside in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            r, c = row + below, column + aside
            if 0 <= r < n and 0 <= c < n and 0 <= steps[r, c] < steps[row, column]:
                # Of equally short ways, the one along the straight line.
                distance = math.hypot(c + 0.5 - goal[0], r + 0.5 - goal[1])
                if distance < nearest:
                    nearest, next_row, next_column = distance, r, c
        row, column = next_row, next_column
        is_goal = steps[row, column] == 0
        next_x = goal[0] if is_goal else column + 0.5
        next_y = goal[1] if is_goal else row + 0.5
        if k > 0 and not _is_free(blocked, x, y, next_x, next_y):
            break
        to_x, to_y, cells_after = next_x, next_y, float(steps[row, column])
    waypoint[0], waypoint[1], waypoint[2] = to_x, to_y, math.hypot(to_x - x, to_y - y)
    return cells_after


@inlined
def _is_free(
    blocked: NDArray[np.bool_],
    x: float,
    y: float,
    to_x: float,
    to_y: float,
) -> bool:
    """Whether a walker gets straight from one place to another."""
    cells = max(math.hypot(to_x - x, to_y - y), 1e-9)
    dx, dy = (to_x - x) / cells, (to_y - y) / cells
    aside_x, aside_y = -dy * _HALF_WIDTH, dx * _HALF_WIDTH
    left_reach = _trace(blocked, x + aside_x, y + aside_y, dx, dy, cells, None, 0)
    right_reach = _trace(blocked, x - aside_x, y - aside_y, dx, dy, cells, None, 0)
    return left_reach >= cells and right_reach >= cells


@kernel
def _count_moves(
    x: float,
    y: float,
    heading: float,
    velocity: NDArray[np.float64],
    waypoint: NDArray[np.float64],
    cells_after: float,
    costs: NDArray[np.float32],
) -> None:
    """Fills the moves of a quarter of a second to the goal for each first action.

    A move rolls a quarter of a cell or not, and turns by 18 degrees or not, from where the walker
    would come to rest. The moves after it are counted, not tried: turning toward the waypoint, and
    walking.
    """
    rest_x, rest_y = x + ROLL_LAG * velocity[0] / CELL, y - ROLL_LAG * velocity[1] / CELL
    rest_heading = heading + TURN_LAG * velocity[3]
    for action in range(len(_CONTROLS)):
        roll, turn = -_CONTROLS[action, 0] * _ROLL, -_CONTROLS[action, 1] * _TURN
        angle = rest_heading + 0.5 * turn
        dx = waypoint[0] - (rest_x + roll * math.cos(angle))
        dy = waypoint[1] - (rest_y - roll * math.sin(angle))
        bearing = math.atan2(-dy, dx) - (rest_heading + turn)
        bearing = (bearing + math.pi) % (2.0 * math.pi) - math.pi
        cells = math.hypot(dx, dy) + cells_after
        costs[action] = 1.0 + cells / _ROLL + _TURN_WEIGHT * abs(bearing) / _TURN
