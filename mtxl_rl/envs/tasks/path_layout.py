"""Path generation of Memory Gym 1.0.2's MysteryPath: a random search between random walls.

With the same random numbers the search returns the original's path. Numba compiles its loop.
"""

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.jit import jit

SIZE = 7
NUM_CELLS = SIZE**2
NUM_WALL_DRAWS = 2 * NUM_CELLS + 1
"""Random numbers that one grid's walls consume."""
NUM_SEARCH_DRAWS = 4 * NUM_CELLS
"""Random numbers that one search consumes at most."""
_WALL_PROBABILITY = 0.33


def _neighbours(*, diagonal: bool) -> NDArray[np.int64]:
    """Return the neighbours of each cell (column * 7 + row); 49 stands for none.

    The order is right, left, down, up, then the diagonals.
    """
    straight = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    steps = np.array(straight + [(1, 1), (-1, -1), (1, -1), (-1, 1)] * diagonal)
    cells = np.stack(np.divmod(np.arange(NUM_CELLS), SIZE), axis=1)[:, None] + steps
    inside = (cells // SIZE == 0).all(axis=2)
    return np.where(inside, cells[:, :, 0] * SIZE + cells[:, :, 1], NUM_CELLS)


STRAIGHT = _neighbours(diagonal=False)
_AROUND = _neighbours(diagonal=True)
_COLUMN, _ROW = np.divmod(np.arange(NUM_CELLS), SIZE)
# As in the original, inner walls are at least two cells away from the right and lower edges.
_INSIDE = (np.minimum(_COLUMN, _ROW) > 0) & (np.maximum(_COLUMN, _ROW) < SIZE - 2)
_EDGE = (np.minimum(_COLUMN, _ROW) == 0) | (np.maximum(_COLUMN, _ROW) == SIZE - 1)


def draw_walls(
    draws: NDArray[np.float64], *, start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the walls of many grids, [n, 50]; the last entry is not a cell and always true.

    Walls are a third of the inner cells, then 4 or 8 cells of the edge. Those of the edge touch no
    inner wall, not even at a corner. None is the start, the end or a neighbour of either.

    Args:
        draws: Numbers in [0, 1), [n, NUM_WALL_DRAWS].
        start: First cells of the paths, [n].
        end: Last cells, [n].
    """
    num_grids = len(draws)
    is_wall = np.zeros((num_grids, NUM_CELLS + 1), dtype=np.bool_)
    is_wall[:, :NUM_CELLS] = _INSIDE & (draws[:, :NUM_CELLS] < _WALL_PROBABILITY)
    is_kept_free = np.zeros_like(is_wall)
    rows = np.arange(num_grids)[:, None]
    for cell in (start, end):
        is_kept_free[rows, cell[:, None]] = True
        is_kept_free[rows, STRAIGHT[cell]] = True
    may_be = _EDGE & ~is_kept_free[:, :NUM_CELLS] & ~is_wall[:, _AROUND].any(axis=2)
    # Take the 4 or 8 candidates with the smallest random numbers.
    numbers = np.where(may_be, draws[:, NUM_CELLS:-1], 2.0)
    rank = np.argsort(np.argsort(numbers, axis=1), axis=1)
    count = np.where(draws[:, -1] < 0.5, 4, 8)[:, None]
    is_wall[:, :NUM_CELLS] |= may_be & (rank < count)
    is_wall[:, NUM_CELLS] = True
    return is_wall


def lay_path(
    draws: NDArray[np.float64], *, start: int, end: int, is_wall: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return whether each cell is on the path, [49]; all False if the walls block every path.

    Args:
        draws: Numbers in [0, 1), [NUM_SEARCH_DRAWS].
        start: First cell.
        end: Last cell.
        is_wall: The walls of one grid from `draw_walls`, [50].
    """
    previous = np.full(NUM_CELLS + 1, -1)
    distance = np.hypot(_COLUMN - _COLUMN[end], _ROW - _ROW[end])
    jit(_search)(draws, start, end, is_wall.copy(), distance, STRAIGHT, previous)
    is_path = np.zeros(NUM_CELLS, dtype=np.bool_)
    if previous[end] >= 0:
        cell = end
        while cell >= 0:
            is_path[cell] = True
            cell = previous[cell]
    return is_path


def _search(
    draws: NDArray[np.float64],
    start: int,
    end: int,
    is_closed: NDArray[np.bool_],
    distance: NDArray[np.float64],
    neighbours: NDArray[np.int64],
    previous: NDArray[np.int64],
) -> None:
    """Write each cell's predecessor into `previous`; the end's is -1 if there is no path.

    This is A* with two deviations of the original. The next cell is the first one that is better
    than the list's head. A cheaper path to a listed cell changes only its predecessor.
    """
    cost, estimate = np.zeros(50), np.zeros(50)
    is_listed = np.zeros(50, dtype=np.bool_)
    listed = np.zeros(50, dtype=np.int64)
    listed[0] = start
    num_listed, num_used = 1, 0
    while num_listed > 0:
        is_better = estimate[listed[:num_listed]] < estimate[listed[0]]
        chosen = np.argmax(is_better)
        cell = listed[chosen]
        if cell == end:
            return
        listed[chosen : num_listed - 1] = listed[chosen + 1 : num_listed].copy()
        num_listed -= 1
        is_closed[cell] = True
        for neighbour in neighbours[cell]:
            if is_closed[neighbour]:
                continue
            new_cost = cost[cell] + 1 + int(draws[num_used] * 8)
            num_used += 1
            if not is_listed[neighbour]:
                cost[neighbour] = new_cost
                is_listed[neighbour] = True
                listed[num_listed] = neighbour
                num_listed += 1
            elif new_cost >= cost[neighbour]:
                continue
            estimate[neighbour] = cost[neighbour] + distance[neighbour]
            previous[neighbour] = cell
    previous[end] = -1
