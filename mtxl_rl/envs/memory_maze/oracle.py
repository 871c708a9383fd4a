"""The oracle: it knows the maze, and reaches each target in nearly the least time.

It tries what two actions lead to, on the engine's own physics, and adds the seconds that are then
left. These are solved beforehand, for each target of a maze, from every place and heading of a
*model* of the walker. The model rolls at 2 m/s along its heading or stands still, and turns by
1.28 rad/s or not:

    seconds(state) = 0.25 + min over moves of seconds(state after 0.25 s).

The states are nodes, four along a cell and 24 headings; what lies between them is interpolated.
The walker itself has inertia: its speeds follow the controls within 0.2 s (rolling) and 0.13 s
(turning). But where it would come to rest moves as the model does, and so that is looked up.

Places are in cells here: x counts columns, y counts rows from the top.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import announcing_compilation, claim, inlined, kernel
from mtxl_rl.envs.memory_maze.physics import Scratch, move_walker, new_scratch
from mtxl_rl.envs.memory_maze.spec import (
    ACTIONS,
    BALL_RADIUS,
    CELL,
    ROLL_LAG,
    ROLL_SPEED,
    SUBSTEP_SECONDS,
    TARGET_RADIUS,
    TURN_LAG,
    TURN_SPEED,
)
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

_SECONDS = 0.25
_NUM_SUBSTEPS = round(_SECONDS / SUBSTEP_SECONDS)
_ROLL, _TURN = ROLL_SPEED * _SECONDS / CELL, TURN_SPEED * _SECONDS  # cells and radians of a move
_PER_CELL, _NUM_HEADINGS = 4, 24
_PER_RADIAN = _NUM_HEADINGS / (2 * math.pi)
_CONTROLS = np.array(ACTIONS)
# Half the distance of two nodes: the next place is always between nodes of the floor.
_MARGIN = 0.5 / _PER_CELL
_SCRAPING = 2.0  # seconds for each cell that a move leads into a wall
_UNREACHABLE = 1e3
_MAX_SWEEPS, _TOLERANCE = 20, 0.02
_PROMISING = 0.2  # seconds that a first action may be behind the best one
_REACHED = -1e6


class _World(NamedTuple):
    """The maze in which a walker moves; see `choose_actions`."""

    box_of_cell: NDArray[np.int16]
    boxes: NDArray[np.uint8]
    targets: NDArray[np.float64]
    current: int
    target_height: float
    walls: NDArray[np.bool_]
    seconds: NDArray[np.float32]


class Oracle:
    """Actions [B] for the environments as they stand."""

    def __init__(self) -> None:
        self._walls = np.zeros((0, 0, 0), np.bool_)
        self._targets = np.zeros((0, 0, 2))
        self._seconds = np.zeros((0, 0, 0, 0, 0), np.float32)

    def __call__(self, env: MemoryMazeVectorEnv) -> Int64[np.ndarray, " B"]:
        """The first of the two actions that lead on best."""
        if len(self._walls):
            return self._act(env)
        with announcing_compilation("the oracle"):
            return self._act(env)

    def _act(self, env: MemoryMazeVectorEnv) -> NDArray[np.int64]:
        walls, motion = env.walls(), env.motion()
        self._solve_new_mazes(walls, motion.targets, env.config.target_height)
        actions = np.zeros(env.num_envs, np.int64)
        env.run_in_threads(
            choose_actions, *motion, env.config.target_height, walls, self._seconds, actions
        )
        return actions

    def _solve_new_mazes(
        self, walls: NDArray[np.bool_], targets: NDArray[np.float64], target_height: float
    ) -> None:
        count, n = walls.shape[:2]
        if self._walls.shape != walls.shape:
            side = n * _PER_CELL
            shape = (count, targets.shape[1], side, side, _NUM_HEADINGS)
            self._seconds = np.zeros(shape, np.float32)
            self._walls, self._targets = np.zeros_like(walls), np.zeros_like(targets)
        is_old = (self._walls == walls).all(axis=(1, 2)) & (self._targets == targets).all((1, 2))
        for index in np.flatnonzero(~is_old):
            for k, (x, y) in enumerate(targets[index]):
                place = np.array([n / 2 + x / CELL, n / 2 - y / CELL])
                solve_seconds(walls[index], place, _reach(target_height), self._seconds[index, k])
        self._walls, self._targets = walls, targets.copy()


def _reach(target_height: float) -> float:
    """Cells from a target's centre in which it is touched; see `physics`."""
    if target_height > 0.5:
        return 0.41 / CELL
    radius = TARGET_RADIUS + BALL_RADIUS
    return math.sqrt(radius**2 - (target_height - BALL_RADIUS) ** 2) / CELL


@kernel
def solve_seconds(
    walls: NDArray[np.bool_],
    target: Float64[np.ndarray, "2"],
    reach: float,
    seconds: Float32[np.ndarray, "y x headings"],
) -> None:
    """Fill the seconds that the model takes to come within `reach` of a target.

    Sweeps through the nodes in the order of their seconds so far: most are right after the first.

    Args:
        walls: [n, n], rows from the top.
        target: Its column and row.
        reach: In cells.
        seconds: Filled, at the middles of 4 x 4 nodes a cell and at headings k 2 pi / 24.
    """
    seconds[:, :, :] = _UNREACHABLE
    nodes = _bound_seconds(walls, target, seconds)
    order = np.empty(len(nodes))
    for _ in range(_MAX_SWEEPS):
        for k in range(len(nodes)):
            order[k] = seconds[nodes[k, 0], nodes[k, 1]].min()
        largest_gain = 0.0
        for k in np.argsort(order):
            row, column = nodes[k, 0], nodes[k, 1]
            x, y = (column + 0.5) / _PER_CELL, (row + 0.5) / _PER_CELL
            if math.hypot(x - target[0], y - target[1]) <= reach:
                seconds[row, column] = 0.0
            else:
                gain = _improve_node(walls, x, y, seconds[row, column], seconds)
                largest_gain = max(gain, largest_gain)
        if largest_gain < _TOLERANCE:
            break


@kernel
def _bound_seconds(
    walls: NDArray[np.bool_], target: NDArray[np.float64], seconds: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Fill in more than the seconds from each floor node, and return these nodes [nodes, 2].

    That is 1.5 seconds a cell, breadth first, and time to turn; sweeps can only lower it.
    """
    n = len(walls)
    cells = np.empty((n * n, 2), np.int64)
    is_found = walls.copy()
    cells[0, 0], cells[0, 1] = int(target[1]), int(target[0])
    is_found[cells[0, 0], cells[0, 1]] = True
    nodes = np.empty((n * n * _PER_CELL * _PER_CELL, 2), np.int64)
    bound = np.full((n, n), 5.0)
    head, tail, count = 0, 1, 0
    while head < tail:
        row, column = cells[head, 0], cells[head, 1]
        head += 1
        for i in range(row * _PER_CELL, (row + 1) * _PER_CELL):
            for j in range(column * _PER_CELL, (column + 1) * _PER_CELL):
                nodes[count, 0], nodes[count, 1] = i, j
                seconds[i, j] = bound[row, column]
                count += 1
        for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if not is_found[row + dr, column + dc]:
                is_found[row + dr, column + dc] = True
                bound[row + dr, column + dc] = bound[row, column] + 1.5
                cells[tail, 0], cells[tail, 1] = row + dr, column + dc
                tail += 1
    return nodes[:count]


@kernel
def _improve_node(
    walls: NDArray[np.bool_],
    x: float,
    y: float,
    node: NDArray[np.float32],
    seconds: NDArray[np.float32],
) -> float:
    """Lower the seconds [headings] of one place where a move is better; return the most gained.

    Headings are gone through there and back, since turning on the spot leads from one to the next.
    """
    gained = 0.0
    turn = _TURN * _PER_RADIAN
    for k in range(2 * _NUM_HEADINGS):
        is_first = k < _NUM_HEADINGS
        heading = k if is_first else 2 * _NUM_HEADINGS - 1 - k
        best = float(node[heading])
        for side in range(-1, 2):
            if side != 0:
                best = min(best, _SECONDS + _at_heading(node, heading + side * turn))
            if is_first:
                angle = (heading + 0.5 * side * turn) / _PER_RADIAN
                to_x, to_y = x + _ROLL * math.cos(angle), y - _ROLL * math.sin(angle)
                left = _seconds_left(walls, x, y, to_x, to_y, heading + side * turn, seconds)
                best = min(best, _SECONDS + left)
        gained = max(gained, node[heading] - best)
        node[heading] = best
    return gained


@inlined
def _at_heading(node: NDArray[np.float32], heading: float) -> float:
    """A place's seconds [headings], interpolated between two headings, which count bins."""
    heading = heading % _NUM_HEADINGS
    low = int(heading) % _NUM_HEADINGS
    share = heading - int(heading)
    high = low + 1 if low + 1 < _NUM_HEADINGS else 0
    return node[low] * (1.0 - share) + node[high] * share


@kernel
def _seconds_left(
    walls: NDArray[np.bool_],
    x: float,
    y: float,
    to_x: float,
    to_y: float,
    heading: float,
    seconds: NDArray[np.float32],
) -> float:
    """The seconds at (to_x, to_y), or where walls stop the way there from (x, y)."""
    kept_x, kept_y = _keep_off_walls(walls, x, y, to_x, to_y)
    left, top = kept_x * _PER_CELL - 0.5, kept_y * _PER_CELL - 0.5
    column, row = int(left), int(top)
    right_share, low_share = left - column, top - row
    upper = (1.0 - right_share) * _at_heading(seconds[row, column], heading)
    upper += right_share * _at_heading(seconds[row, column + 1], heading)
    lower = (1.0 - right_share) * _at_heading(seconds[row + 1, column], heading)
    lower += right_share * _at_heading(seconds[row + 1, column + 1], heading)
    scraped = abs(kept_x - to_x) + abs(kept_y - to_y)
    return (1.0 - low_share) * upper + low_share * lower + _SCRAPING * scraped


@kernel
def _keep_off_walls(
    walls: NDArray[np.bool_], x: float, y: float, to_x: float, to_y: float
) -> tuple[float, float]:
    """The place nearest to (to_x, to_y), reached from (x, y), that is a margin away from walls."""
    column, row = int(to_x), int(to_y)
    if walls[row, column]:
        column, row = int(x), int(y)
    low, high = _MARGIN, 1.0 - _MARGIN
    fx, fy = to_x - column, to_y - row
    if walls[row, column - 1]:
        fx = max(fx, low)
    if walls[row, column + 1]:
        fx = min(fx, high)
    if walls[row - 1, column]:
        fy = max(fy, low)
    if walls[row + 1, column]:
        fy = min(fy, high)
    aside = -1 if fx < low else int(fx > high)
    below = -1 if fy < low else int(fy > high)
    if aside != 0 and below != 0 and walls[row + below, column + aside]:
        # Out of a corner by the shorter way.
        inside_x, inside_y = min(max(fx, low), high), min(max(fy, low), high)
        if abs(fx - inside_x) < abs(fy - inside_y):
            fx = inside_x
        else:
            fy = inside_y
    return column + fx, row + fy


@kernel
def choose_actions(
    rows: NDArray[np.int64],
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    box_of_cell: NDArray[np.int16],
    boxes: NDArray[np.uint8],
    targets: NDArray[np.float64],
    current: NDArray[np.int64],
    target_height: float,
    walls: NDArray[np.bool_],
    seconds: NDArray[np.float32],
    actions: NDArray[np.int64],
) -> None:
    """Set the actions after which, with a second one each, the fewest seconds are left.

    Args:
        rows: The environments that are left; see `kernels.claim`.
        position: [environments, 5]; see `physics.move_walker`.
        velocity: [environments, 5]; likewise.
        box_of_cell: [environments, n, n]; likewise.
        boxes: [environments, boxes, 4]; likewise.
        targets: [environments, targets, 2] centres in metres.
        current: [environments] the target to be reached.
        target_height: Of the targets' centres in metres.
        walls: [environments, n, n], rows from the top.
        seconds: [environments, targets, y, x, headings] of `solve_seconds`.
        actions: [environments] is filled.
    """
    scratch = new_scratch()
    e = claim(rows)
    while e >= 0:
        world = _World(
            box_of_cell[e], boxes[e], targets[e], current[e], target_height, walls[e], seconds[e]
        )
        actions[e] = _choose_action(position[e], velocity[e], world, scratch)
        e = claim(rows)


@kernel
def _choose_action(
    position: NDArray[np.float64], velocity: NDArray[np.float64], world: _World, scratch: Scratch
) -> int:
    """The first of the two actions after which one walker has the fewest seconds left."""
    count = len(_CONTROLS)
    places, speeds = np.empty((count, 5)), np.empty((count, 5))
    left = np.full(count, math.inf)
    for action in range(1, count):  # standing still is of no use
        places[action], speeds[action] = position, velocity
        left[action] = _try_action(action, places[action], speeds[action], world, scratch)
    promising = left.min() + _PROMISING
    place, speed = np.empty(5), np.empty(5)
    for first in range(1, count):
        if left[first] < 0.0:
            continue  # it reaches the target
        is_promising = left[first] <= promising
        left[first] = math.inf
        if not is_promising:
            continue
        for second in range(1, count):
            place[:], speed[:] = places[first], speeds[first]
            after = _SECONDS + _try_action(second, place, speed, world, scratch)
            left[first] = min(left[first], after)
    return int(np.argmin(left))


@kernel
def _try_action(
    action: int,
    place: NDArray[np.float64],
    speed: NDArray[np.float64],
    world: _World,
    scratch: Scratch,
) -> float:
    """Move a walker in place; return the seconds that are left, or `_REACHED`."""
    touched = move_walker(
        place,
        speed,
        _CONTROLS[action, 0],
        _CONTROLS[action, 1],
        _NUM_SUBSTEPS,
        world.box_of_cell,
        world.boxes,
        world.targets,
        world.target_height,
        scratch,
    )
    if not touched >> world.current & 1:
        return _seconds_at(place, speed, world)
    return _REACHED


@inlined
def _seconds_at(place: NDArray[np.float64], speed: NDArray[np.float64], world: _World) -> float:
    """The seconds to the target from where a walker would come to rest."""
    n = len(world.walls)
    x, y = n / 2 + place[0] / CELL, n / 2 - place[1] / CELL
    return _seconds_left(
        world.walls,
        x,
        y,
        x + ROLL_LAG * speed[0] / CELL,
        y - ROLL_LAG * speed[1] / CELL,
        (place[3] + TURN_LAG * speed[3]) * _PER_RADIAN,
        world.seconds[world.current],
    )
