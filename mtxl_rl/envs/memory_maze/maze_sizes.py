"""The sizes of Memory Maze, with the original's settings of each."""

from typing import NamedTuple

MAX_NUM_TARGETS = 6


class MazeSize(NamedTuple):
    """The original's settings for a size."""

    side: int
    """Cells on a side without the outer wall."""
    num_targets: int
    episode_seconds: float
    max_rooms: int
    room_max_side: int
    objects_per_room: int = 1

    @property
    def grid(self) -> int:
        """Cells on a side with the outer wall."""
        return self.side + 2


SIZES = {
    # Below the original, for curricula: one room with two spheres, then up to four rooms.
    "5x5": MazeSize(5, 2, 62.5, 1, 5, objects_per_room=2),
    "7x7": MazeSize(7, 2, 125, 4, 3),
    "9x9": MazeSize(9, 3, 250, 6, 5),
    "11x11": MazeSize(11, 4, 500, 6, 5),
    "13x13": MazeSize(13, 5, 750, 6, 5),
    "15x15": MazeSize(15, 6, 1000, 9, 3),
    # Above the original: six spheres as in its largest task, more time and more rooms.
    **{
        f"{side}x{side}": MazeSize(side, MAX_NUM_TARGETS, 250 * (side - 7) / 2, side - 6, 5)
        for side in range(17, 32, 2)
    },
}
