"""Random mazes of rooms and corridors: the algorithm of DeepMind Lab's text mazes.

Beattie et al. (2016), "DeepMind Lab", https://arxiv.org/abs/1612.03801. The package labmaze 1.0.6
(https://github.com/google-deepmind/labmaze) is its published implementation; the mazes here equal
labmaze's cell by cell. One maze is made in six steps:

1. Rooms: rectangles of odd sides on odd cells are drawn until there are enough of them, or until
   too many fell on an earlier one. Then they are shuffled and numbered.
2. Corridors: from every odd cell that nothing has filled yet, a depth-first walk of two cells a
   step fills what it reaches (a recursive backtracker). Each such piece has its own number.
3. Connections: every two neighbouring pieces (rooms or corridors) are joined through one random
   wall cell between them, and through each other one with `extra_connection_probability`.
4. Simplification: dead ends are filled, then detours around a straight way are cut short.
5. Variations: labmaze gives each room's floor a letter; this is the room's number here.
6. Spawn places and object places: random free cells of each room.

Cells are (row, column), rows from the top. Everything in odd cells is floor or may become it; the
even rows and columns in between hold walls and connections.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import bare_kernel, kernel
from mtxl_rl.envs.memory_maze.mersenne import draw_below, draw_unit, seeded_state, shuffle

WALL, FLOOR, SPAWN, OBJECT = (ord(character) for character in "* PG")
"""Cells of a maze, by labmaze's characters."""
_CONNECTION = 1  # while a maze is made: neither a wall nor floor for the simplification
MAX_VARIATIONS = 26
_RETRIES = 1000
_DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
"""Directions in the order in which labmaze tries them: down, up, right, left."""


class TextMazeSettings(NamedTuple):
    """The parameters of a generator's mazes, except for its seed; sides are odd and count cells."""

    side: int
    """Side of the maze with its outer wall, at least 5."""
    max_rooms: int
    """Largest number of rooms that are tried; 0: as many as fit."""
    room_min_side: int
    """Smallest side of a room, at least 3."""
    room_max_side: int
    """Largest side of a room, at most side - 2."""
    extra_connection_probability: float = 0.0
    spawns_per_room: int = 1
    objects_per_room: int = 1


class TextMaze(NamedTuple):
    """One maze."""

    cells: UInt8[np.ndarray, "side side"]
    """`WALL`, `FLOOR`, `SPAWN` or `OBJECT`."""
    rooms: UInt8[np.ndarray, "side side"]
    """The number of the room that a cell lies in, from 1; 0 elsewhere."""

    def variations(self) -> UInt8[np.ndarray, "side side"]:
        """The variations layer of labmaze: ``A`` .. ``Z`` in rooms and ``.`` elsewhere."""
        letters = ord("A") + (self.rooms.astype(np.int64) - 1) % MAX_VARIATIONS
        return np.where(self.rooms > 0, letters, ord(".")).astype(np.uint8)


class TextMazeGenerator:
    """The endless sequence of mazes of one seed: labmaze's `RandomMaze`.

    Args:
        settings: What the mazes are like.
        seed: From 0 to 2**31 - 1.
    """

    __slots__ = ("_settings", "state")

    state: UInt64[np.ndarray, "313"]
    """State of the random number generator; it alone decides the next mazes. See `mersenne.py`."""

    def __init__(self, settings: TextMazeSettings, *, seed: int) -> None:
        self._settings = settings
        self.state = seeded_state(seed)

    def next_maze(self) -> TextMaze:
        """Make the next maze; the first one is that which labmaze makes at construction."""
        side = self._settings.side
        maze = TextMaze(np.empty((side, side), np.uint8), np.empty((side, side), np.uint8))
        make_maze(self.state, self._settings, *maze)
        return maze


@kernel
def make_maze(
    state: NDArray[np.uint64],
    settings: TextMazeSettings,
    cells: NDArray[np.uint8],
    rooms: NDArray[np.uint8],
) -> None:
    """Fill `cells` and `rooms`, both [side, side], with the next maze; see `TextMaze`."""
    side = len(cells)
    pieces = np.zeros((side, side), np.int64)
    rectangles = np.empty((side * side, 4), np.int64)
    connections = np.empty((side * side, 4), np.int64)
    num_rooms = _draw_rooms(state, settings, rectangles)
    _fill_rooms(cells, rooms, pieces, rectangles, num_rooms)
    _fill_with_corridors(state, cells, pieces, num_rooms + 1)
    num_connections = _connect(
        state, settings.extra_connection_probability, cells, pieces, connections
    )
    _fill_dead_ends(cells)
    _cut_detours(cells)
    _place_in_rooms(state, settings, cells, rectangles, num_rooms)
    for k in range(num_connections):
        row, column = connections[k, 0], connections[k, 1]
        # A connection to a corridor that was filled again is a wall again.
        leads_nowhere = cells[row + connections[k, 2], column + connections[k, 3]] == WALL
        cells[row, column] = WALL if leads_nowhere else FLOOR


@bare_kernel
def _draw_rooms(
    state: NDArray[np.uint64], settings: TextMazeSettings, rooms: NDArray[np.int64]
) -> int:
    """Draw rooms that do not overlap, and return how many.

    A room's short side is drawn from the lower half of the sides that are allowed. The other side
    is drawn in the same way, and then lengthened by a draw from the upper half.

    Args:
        state: Of the random numbers.
        settings: The maze's.
        rooms: [at least the number of rooms, 4] is filled with first row, first column, end row,
            end column of each, in the order of their numbers.
    """
    side = (settings.side - 1) // 2  # in steps of two cells
    shortest, longest = (settings.room_min_side - 1) // 2, (settings.room_max_side - 1) // 2
    middle = (shortest + longest) // 2
    most = settings.max_rooms if settings.max_rooms > 0 else len(rooms)
    retries, area = 0, 0
    count = int(np.int64(0))  # numba compiles what a literal is passed to once more
    while retries < _RETRIES and area < settings.side**2 and count < most:
        width = _draw_between(state, shortest, middle)
        height = _draw_between(state, shortest, middle)
        if draw_below(state, 2) == 0:
            width += _draw_between(state, middle, longest) - middle
        else:
            height += _draw_between(state, middle, longest) - middle
        top = 2 * _draw_between(state, 0, side - height - 1) + 1
        left = 2 * _draw_between(state, 0, side - width - 1) + 1
        bottom, right = top + 2 * height + 1, left + 2 * width + 1
        if _overlaps(rooms, count, top, left, bottom, right):
            retries += 1
            continue
        rooms[count, 0], rooms[count, 1], rooms[count, 2], rooms[count, 3] = (
            top,
            left,
            bottom,
            right,
        )
        count += 1
        area += (bottom - top) * (right - left)
    shuffle(state, rooms, count)
    return count


@bare_kernel
def _fill_rooms(
    cells: NDArray[np.uint8],
    rooms: NDArray[np.uint8],
    pieces: NDArray[np.int64],
    rectangles: NDArray[np.int64],
    num_rooms: int,
) -> None:
    """Write the rooms into a maze that is a wall elsewhere; `pieces` must come filled with 0."""
    side = len(cells)
    for row in range(side):
        for column in range(side):
            cells[row, column], rooms[row, column] = WALL, 0
    for k in range(num_rooms):
        for row in range(rectangles[k, 0], rectangles[k, 2]):
            for column in range(rectangles[k, 1], rectangles[k, 3]):
                cells[row, column] = FLOOR
                rooms[row, column] = pieces[row, column] = k + 1


@bare_kernel
def _draw_between(state: NDArray[np.uint64], low: int, high: int) -> int:
    """A number from `low` to `high`; nothing is drawn where there is no choice."""
    return low + draw_below(state, high - low + 1) if low < high else low


@bare_kernel
def _overlaps(
    rooms: NDArray[np.int64], count: int, top: int, left: int, bottom: int, right: int
) -> bool:
    for k in range(count):
        in_rows = rooms[k, 0] < bottom and top < rooms[k, 2]
        if in_rows and rooms[k, 1] < right and left < rooms[k, 3]:
            return True
    return False


@kernel
def _fill_with_corridors(
    state: NDArray[np.uint64], cells: NDArray[np.uint8], pieces: NDArray[np.int64], piece: int
) -> None:
    """Fill what lies between the rooms; the corridors' numbers start at `piece`."""
    side = len(cells)
    path = np.empty((side * side, 2), np.int64)
    for row in range(1, side, 2):
        for column in range(1, side, 2):
            if pieces[row, column] == 0:
                _fill_with_corridor(state, cells, pieces, piece, row, column, path)
                piece += 1


@kernel
def _fill_with_corridor(
    state: NDArray[np.uint64],
    cells: NDArray[np.uint8],
    pieces: NDArray[np.int64],
    piece: int,
    row: int,
    column: int,
    path: NDArray[np.int64],
) -> None:
    """Walk at random from a cell, backtracking at dead ends, until the walk is at its start again.

    Args:
        state: Of the random numbers.
        cells: [side, side]; the walk becomes `FLOOR`.
        pieces: [side, side]; the walk enters cells of piece 0 and gives them its own number.
        piece: That number.
        row: Of the start.
        column: Of the start.
        path: [side * side, 2] is overwritten.
    """
    side = len(cells)
    options = np.empty(4, np.int64)
    cells[row, column] = FLOOR
    pieces[row, column] = piece
    path[0, 0], path[0, 1] = row, column
    length = 1
    while length > 0:
        row, column = path[length - 1, 0], path[length - 1, 1]
        num_options = 0
        for k in range(4):
            y, x = row + 2 * _DIRECTIONS[k, 0], column + 2 * _DIRECTIONS[k, 1]
            if 0 <= y < side and 0 <= x < side and pieces[y, x] == 0:
                options[num_options] = k
                num_options += 1
        if num_options == 0:
            length -= 1
            continue
        k = options[draw_below(state, num_options)]
        for _ in range(2):
            row, column = row + _DIRECTIONS[k, 0], column + _DIRECTIONS[k, 1]
            cells[row, column] = FLOOR
            pieces[row, column] = piece
        path[length, 0], path[length, 1] = row, column
        length += 1


@kernel
def _connect(
    state: NDArray[np.uint64],
    extra_probability: float,
    cells: NDArray[np.uint8],
    pieces: NDArray[np.int64],
    connections: NDArray[np.int64],
) -> int:
    """Open walls between pieces, and return how many.

    Args:
        state: Of the random numbers.
        extra_probability: Of opening a wall between pieces that are connected already.
        cells: [side, side]; what is opened becomes a connection.
        pieces: [side, side] the number of each cell's piece.
        connections: [at least the number of connections, 4] is filled with the row and column of
            each, and the way through it from the piece of the lower number.
    """
    walls = np.empty((cells.size, 5), np.int64)
    num_walls = _sort_walls(pieces, walls)
    count = 0
    first = 0
    while first < num_walls:
        end = first + 1
        while end < num_walls and walls[end, 4] == walls[first, 4]:
            end += 1
        _open_wall(cells, walls, first + draw_below(state, end - first), connections, count)
        count += 1
        first = end
    for k in range(num_walls):
        is_chosen = draw_unit(state) <= extra_probability
        if is_chosen and not _is_next_to_connection(cells, walls[k, 0], walls[k, 1]):
            _open_wall(cells, walls, k, connections, count)
            count += 1
    return count


@bare_kernel
def _open_wall(
    cells: NDArray[np.uint8],
    walls: NDArray[np.int64],
    k: int,
    connections: NDArray[np.int64],
    count: int,
) -> None:
    """Make wall k the connection number `count`."""
    cells[walls[k, 0], walls[k, 1]] = _CONNECTION
    for column in range(4):
        connections[count, column] = walls[k, column]


@bare_kernel
def _sort_walls(pieces: NDArray[np.int64], walls: NDArray[np.int64]) -> int:
    """Find the walls between two pieces, and return how many.

    Pairs of pieces come in the order of their numbers, and the walls between two pieces in reading
    order of the cells of the lower one.

    Args:
        pieces: [side, side] the number of each cell's piece.
        walls: [side * side, 5] is filled with row, column, the way through, a number for the pair.
    """
    side = len(pieces)
    count = 0
    for row in range(1, side, 2):
        for column in range(1, side, 2):
            for k in range(4):
                down, right = _DIRECTIONS[k, 0], _DIRECTIONS[k, 1]
                y, x = row + 2 * down, column + 2 * right
                if not (0 <= y < side and 0 <= x < side) or pieces[y, x] <= pieces[row, column]:
                    continue
                pair = pieces[row, column] * side * side + pieces[y, x]
                place = count
                while place > 0 and walls[place - 1, 4] > pair:
                    for i in range(5):
                        walls[place, i] = walls[place - 1, i]
                    place -= 1
                walls[place, 0], walls[place, 1] = row + down, column + right
                walls[place, 2], walls[place, 3], walls[place, 4] = down, right, pair
                count += 1
    return count


@bare_kernel
def _is_next_to_connection(cells: NDArray[np.uint8], row: int, column: int) -> bool:
    for k in range(4):
        if cells[row + _DIRECTIONS[k, 0], column + _DIRECTIONS[k, 1]] == _CONNECTION:
            return True
    return False


@bare_kernel
def _fill_dead_ends(cells: NDArray[np.uint8]) -> None:
    """Make floor a wall if at most one of its neighbours is not a wall; then that neighbour."""
    for first_row in range(1, len(cells) - 1):
        for first_column in range(1, len(cells) - 1):
            row, column = first_row, first_column
            while cells[row, column] == FLOOR:
                num_walls, next_row, next_column = _look_around(cells, row, column)
                if num_walls < 3:
                    break
                cells[row, column] = WALL
                row, column = next_row, next_column


@bare_kernel
def _look_around(cells: NDArray[np.uint8], row: int, column: int) -> tuple[int, int, int]:
    """The number of neighbours that are walls, and the neighbour that is floor; itself if none."""
    num_walls, floor_row, floor_column = 0, row, column
    for k in range(4):
        y, x = row + _DIRECTIONS[k, 0], column + _DIRECTIONS[k, 1]
        if cells[y, x] == FLOOR:
            floor_row, floor_column = y, x
        elif cells[y, x] == WALL:
            num_walls += 1
    return num_walls, floor_row, floor_column


@bare_kernel
def _cut_detours(cells: NDArray[np.uint8]) -> None:
    """Replace corridors that leave a straight way and come back to it (horseshoe bends).

    Wider detours are looked for after narrower ones; when a wide one is cut, narrow ones may have
    come up, so the search starts again. After one of width 1, labmaze continues with width 2.
    """
    is_searching = True
    while is_searching:
        is_searching = False
        for width in range(1, len(cells) - 3):
            if _cut_one_detour(cells, width) and width > 1:
                is_searching = True
                break


@bare_kernel
def _cut_one_detour(cells: NDArray[np.uint8], width: int) -> bool:
    """Cut the first detour of `width`, and what that makes of it, in reading order; if any."""
    for row in range(len(cells)):
        for column in range(len(cells)):
            y, x = row, column
            is_cut = False
            k = _detour(cells, y, x, width)
            while k >= 0:
                is_cut = True
                down, right = _DIRECTIONS[k, 0], _DIRECTIONS[k, 1]
                for u in range(-1, width + 1):
                    # The cell of the detour, one step from the straight way.
                    there_y, there_x = y + u * right + down, x - u * down + right
                    if 0 <= u < width:
                        cells[y + u * right, x - u * down] = cells[there_y, there_x]
                    cells[there_y, there_x] = WALL
                y, x = y - down, x - right
                k = _detour(cells, y, x, width)
            if is_cut:
                return True
    return False


@bare_kernel
def _detour(cells: NDArray[np.uint8], row: int, column: int, width: int) -> int:
    """The first direction in which a detour of `width` leaves the wall cell (row, column), or -1.

    With v the steps in that direction and u those to its right, a detour of width 3 looks like this
    (# wall, . floor, ? either):

        v = 2     ? # # # # # ?    the wall behind the detour
        v = 1     # . . . . . #    the detour, two cells longer than its width
        v = 0     ? . # # # . ?    the straight way, to be opened from u = 0 to 2
        v = -1    ? ? # # # ? ?
             u = -2 -1 0 1 2 3 4
    """
    if cells[row, column] != WALL:
        return -1
    for k in range(4):
        u = -1  # rules out more than -2, which comes last
        while u <= width + 1 and _is_detour_at(cells, row, column, k, u, width):
            u += 1
        if u > width + 1 and _is_detour_at(cells, row, column, k, -2, width):
            return k
    return -1


@bare_kernel
def _is_detour_at(
    cells: NDArray[np.uint8], row: int, column: int, k: int, u: int, width: int
) -> bool:
    """Whether the four cells at `u` are as `_detour` needs them, in direction k."""
    down, right = _DIRECTIONS[k, 0], _DIRECTIONS[k, 1]
    y, x = row + u * right, column - u * down
    if u < -1 or u > width:
        return _at(cells, y + down, x + right) == WALL
    if _at(cells, y + down, x + right) != FLOOR:
        return False
    is_straight = 0 <= u < width
    if _at(cells, y, x) != (WALL if is_straight else FLOOR):
        return False
    if is_straight and _at(cells, y - down, x - right) != WALL:
        return False
    return _at(cells, y + 2 * down, x + 2 * right) == WALL


@bare_kernel
def _at(cells: NDArray[np.uint8], row: int, column: int) -> int:
    """A cell, or 0 outside of the maze."""
    side = len(cells)
    return cells[row, column] if 0 <= row < side and 0 <= column < side else 0


@kernel
def _place_in_rooms(
    state: NDArray[np.uint64],
    settings: TextMazeSettings,
    cells: NDArray[np.uint8],
    rooms: NDArray[np.int64],
    num_rooms: int,
) -> None:
    """Put spawn places, then object places, into random floor cells of each room."""
    free = np.empty((cells.size, 2), np.int64)
    counts = (settings.spawns_per_room, settings.objects_per_room)
    for kind in range(2):
        for k in range(num_rooms):
            num_free = 0
            for row in range(rooms[k, 0], rooms[k, 2]):
                for column in range(rooms[k, 1], rooms[k, 3]):
                    if cells[row, column] == FLOOR:
                        free[num_free, 0], free[num_free, 1] = row, column
                        num_free += 1
            shuffle(state, free, num_free)
            for i in range(min(counts[kind], num_free)):
                cells[free[i, 0], free[i, 1]] = SPAWN if kind == 0 else OBJECT
