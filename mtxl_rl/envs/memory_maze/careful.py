"""A walker that keeps away from walls, where MuJoCo and this implementation agree best."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.explorer import measure_steps
from mtxl_rl.envs.memory_maze.kernels import kernel
from mtxl_rl.envs.memory_maze.spec import CELL
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

_FORWARD, _LEFT, _RIGHT, _FORWARD_LEFT, _FORWARD_RIGHT = 1, 2, 3, 4, 5
_TURN_ON_THE_SPOT, _TURN_WHILE_WALKING = 0.6, 0.13  # radians; a step turns by 0.32


def careful(env: MemoryMazeVectorEnv) -> Int64[np.ndarray, " B"]:
    """Walk from cell centre to cell centre and turn on the spot, to stay away from the walls."""
    walkers = env.walkers()
    return choose_steps(walkers[:, :2], walkers[:, 3], env.current_targets(), env.walls())


@kernel
def choose_steps(
    positions: Float64[np.ndarray, "B 2"],
    headings: Float64[np.ndarray, " B"],
    targets: Float64[np.ndarray, "B 2"],
    walls: NDArray[np.bool_],
) -> Int64[np.ndarray, " B"]:
    """Actions that go to targets on shortest paths, from cell centre to cell centre.

    Args:
        positions: Of the walkers, x and y in metres.
        headings: Radians, counter-clockwise from the x axis.
        targets: Where to go, x and y in metres.
        walls: [B, n, n], rows from the top.
    """
    count, n = walls.shape[0], walls.shape[1]
    distance = np.empty((n, n), np.int64)
    queue = np.empty((n * n, 2), np.int64)
    actions = np.empty(count, np.int64)
    for e in range(count):
        measure_steps(*_cell(targets[e], n), walls[e], distance, queue)
        x, y = targets[e, 0], targets[e, 1]
        row, column = _downhill(*_cell(positions[e], n), distance)
        if distance[row, column] > 0:
            x, y = (column - (n - 1) / 2) * CELL, ((n - 1) / 2 - row) * CELL
        bearing = np.arctan2(y - positions[e, 1], x - positions[e, 0]) - headings[e]
        actions[e] = _steer((bearing + np.pi) % (2 * np.pi) - np.pi)
    return actions


@kernel
def _downhill(row: int, column: int, distance: NDArray[np.int64]) -> tuple[int, int]:
    """The neighbour that is nearer to the goal, or the goal itself."""
    for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if distance[row + dr, column + dc] == distance[row, column] - 1 >= 0:
            return row + dr, column + dc
    return row, column


@kernel
def _cell(position: NDArray[np.float64], n: int) -> tuple[int, int]:
    """Row and column of a position (x, y) in metres."""
    return int(n / 2 - position[1] / CELL), int(n / 2 + position[0] / CELL)


@kernel
def _steer(angle: float) -> int:
    """The action that turns or walks toward a direction, in radians left of the heading."""
    if abs(angle) > _TURN_ON_THE_SPOT:
        return _LEFT if angle > 0 else _RIGHT
    if abs(angle) > _TURN_WHILE_WALKING:
        return _FORWARD_LEFT if angle > 0 else _FORWARD_RIGHT
    return _FORWARD
