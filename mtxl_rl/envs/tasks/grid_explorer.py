"""Players of GridMemoryMaze that plan: the explorer knows what it has seen, the oracle the maze.

Until the explorer knows the cell of the prompted object, it goes to the nearest place from which it
sees an unknown cell next to known floor. Then it takes the shortest path on which it knows of no
wall. It may forget what it last saw more than `memory_steps` steps ago. It knows its own place and
heading. Knowing everything, it is the oracle: an agent that takes the fewest steps to each object.
"""

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import kernel
from mtxl_rl.envs.tasks.grid_memory_maze import REACH, WALL, GridMemoryMaze
from mtxl_rl.envs.tasks.walker import NUM_HEADINGS

ALWAYS = 2**29
NEVER = -(2**30)  # further back than any memory reaches
_FAR = 1_000


class GridExplorer:
    """Players of the environments of a `GridMemoryMaze`.

    Args:
        env: Is observed.
        memory_steps: A player forgets what it last saw more than this many steps ago; None:
            nothing.
        knows_maze: Whether it knows the whole maze (oracle).
    """

    def __init__(
        self, env: GridMemoryMaze, *, memory_steps: int | None = None, knows_maze: bool = False
    ) -> None:
        if memory_steps is not None and memory_steps < 0:
            raise ValueError(
                f"memory_steps={memory_steps} must be 0 (only what is in view) or more; leave it "
                "out to forget nothing."
            )
        self.env = env
        self.memory_steps = ALWAYS if memory_steps is None else memory_steps
        self.knows_maze = knows_maze
        self.seen_at: Int32[np.ndarray, "B cells"] = np.full_like(env.world, NEVER, np.int32)
        """The step at which each cell was last seen."""

    def look(self) -> None:
        """See what is in view at the current step; at an episode's first, forget the rest."""
        env = self.env
        self.seen_at[env.step_index == 0] = NEVER
        now = env.step_index[:, None].astype(np.int32)
        np.put_along_axis(self.seen_at, env.cells_in_view(), now, axis=1)

    def ages(self, cells: Int64[np.ndarray, "B n"]) -> Int64[np.ndarray, "B n"]:
        """Steps since cells were last in view; -1: never."""
        seen_at = np.take_along_axis(self.seen_at, cells, axis=1)
        ages: NDArray[np.int64] = np.where(
            seen_at == NEVER, -1, self.env.step_index[:, None] - seen_at
        )
        return ages

    def costs(self) -> Float32[np.ndarray, "B 4"]:
        """Steps to the goal after each action, the action's own included."""
        env = self.env
        costs = np.zeros((env.num_envs, 4), np.float32)
        count_steps(
            env.world == WALL,
            self.seen_at,
            np.full_like(env.cell, NEVER)
            if self.knows_maze
            else env.step_index - self.memory_steps,
            env.objects[env.all_rows, env.prompt],
            env.cell,
            env.heading,
            REACH,
            costs,
        )
        return costs

    def act(self) -> Int64[np.ndarray, " B"]:
        """See what is in view, and return the action of fewest steps."""
        self.look()
        actions: NDArray[np.int64] = self.costs().argmin(axis=1)
        return actions


@kernel
def count_steps(
    is_wall: NDArray[np.bool_],
    seen_at: NDArray[np.int32],
    oldest: NDArray[np.int64],
    target: NDArray[np.int64],
    cell: NDArray[np.int64],
    heading: NDArray[np.int64],
    reach: int,
    costs: NDArray[np.float32],
) -> None:
    """Fill the steps to the goal after each action, the action's own included.

    Args:
        is_wall: [B, n n] in a square whose outermost cells nobody sees or enters.
        seen_at: [B, n n] the step at which each cell was last seen.
        oldest: [B] cells are known that were seen at this step or later.
        target: [B] the prompted object's cell.
        cell: [B] the player's.
        heading: [B] north, west, south, east.
        reach: Cells that the player sees to each side.
        costs: [B, 4] is filled: of nothing, a turn to the left, one to the right, a step forward.
    """
    num_cells = is_wall.shape[1]
    n = int(np.sqrt(num_cells))
    ahead = np.array([-n, -1, n, 1])
    is_blocked = np.empty(num_cells, np.bool_)
    steps = np.empty((NUM_HEADINGS, num_cells), np.int32)
    queue = np.empty((NUM_HEADINGS * num_cells, 2), np.int64)
    for e in range(len(is_wall)):
        for c in range(num_cells):
            is_rim = c < n or c >= num_cells - n or c % n == 0 or c % n == n - 1
            is_blocked[c] = is_rim or (is_wall[e, c] and seen_at[e, c] >= oldest[e])
        steps[:] = _FAR
        tail = 0
        if seen_at[e, target[e]] >= oldest[e]:
            tail = _add_goal(target[e], steps, queue, tail)
        else:
            for c in range(num_cells):
                if _is_frontier(c, is_blocked, seen_at[e], oldest[e], ahead):
                    for place in _places_around(c, n, reach):
                        if not is_blocked[place]:
                            tail = _add_goal(place, steps, queue, tail)
        _search(is_blocked, ahead, steps, queue, tail)
        h, c = heading[e], cell[e]
        to = c if is_blocked[c + ahead[h]] else c + ahead[h]
        costs[e, 0] = 1 + steps[h, c]
        costs[e, 1] = 1 + steps[(h + 1) % NUM_HEADINGS, c]
        costs[e, 2] = 1 + steps[(h - 1) % NUM_HEADINGS, c]
        costs[e, 3] = 1 + steps[h, to]


@kernel
def _is_frontier(
    cell: int,
    is_blocked: NDArray[np.bool_],
    seen_at: NDArray[np.int32],
    oldest: int,
    ahead: NDArray[np.int64],
) -> bool:
    """Whether a cell is unknown and next to known floor."""
    if is_blocked[cell] or seen_at[cell] >= oldest:
        return False
    for offset in ahead:
        neighbour = cell + offset
        if not is_blocked[neighbour] and seen_at[neighbour] >= oldest:
            return True
    return False


@kernel
def _places_around(cell: int, n: int, reach: int) -> NDArray[np.int64]:
    """The cells from which a cell is in view."""
    side = 2 * reach + 1
    places = np.empty(side * side, np.int64)
    row, column = cell // n, cell % n
    count = 0
    for r in range(max(row - reach, 0), min(row + reach + 1, n)):
        for c in range(max(column - reach, 0), min(column + reach + 1, n)):
            places[count] = r * n + c
            count += 1
    return places[:count]


@kernel
def _add_goal(cell: int, steps: NDArray[np.int32], queue: NDArray[np.int64], tail: int) -> int:
    """Put a cell into the queue, in all headings; return the queue's new length."""
    for heading in range(NUM_HEADINGS):
        if steps[heading, cell] > 0:
            steps[heading, cell] = 0
            queue[tail, 0], queue[tail, 1] = heading, cell
            tail += 1
    return tail


@kernel
def _search(
    is_blocked: NDArray[np.bool_],
    ahead: NDArray[np.int64],
    steps: NDArray[np.int32],
    queue: NDArray[np.int64],
    tail: int,
) -> None:
    """Fill the turns and steps [4, cells] to the nearest goal, breadth first and backwards."""
    head = 0
    while head < tail:
        heading, cell = queue[head, 0], queue[head, 1]
        after = steps[heading, cell] + 1
        head += 1
        behind = cell - ahead[heading]
        before = (
            ((heading + 1) % NUM_HEADINGS, cell),
            ((heading - 1) % NUM_HEADINGS, cell),
            (heading, behind),
        )
        for h, c in before:
            if not is_blocked[c] and steps[h, c] > after:
                steps[h, c] = after
                queue[tail, 0], queue[tail, 1] = h, c
                tail += 1
