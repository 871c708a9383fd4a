"""Pictures of coloured cells and playing cards, for the tasks' `render`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""Red, green and blue, [H, W, 3]."""
Color = tuple[int, int, int]

BLACK, DARK, GRAY, WHITE = (0, 0, 0), (40, 40, 46), (110, 110, 118), (240, 240, 240)
RED, GREEN, BLUE, YELLOW = (214, 69, 65), (76, 175, 80), (66, 133, 244), (250, 204, 60)
PALETTE = (RED, GREEN, BLUE, YELLOW, (171, 71, 188), (0, 172, 193))
"""Colours of objects."""

BORDER = 12
"""Width of the frame that `add_border` draws, in pixels."""
_WIDTH = 640
_CARDS_PER_ROW = 26
_CARD_HEIGHT, _CARD_WIDTH = 24, 18
# Rows of pixels.
_GLYPHS = {
    "A": "010 101 111 101 101", "2": "110 001 010 100 111", "3": "110 001 010 001 110",
    "4": "101 101 111 001 001", "5": "111 100 110 001 110", "6": "011 100 110 101 010",
    "7": "111 001 010 010 010", "8": "010 101 010 101 010", "9": "010 101 011 001 110",
    "T": "111 010 010 010 010", "J": "001 001 001 101 010", "Q": "010 101 101 110 011",
    "K": "101 101 110 101 101", "0": "010 101 101 101 010", "1": "010 110 010 010 111",
    "S": "00100 01110 11111 11111 00100", "H": "01010 11111 11111 01110 00100",
    "D": "00100 01110 11111 01110 00100", "C": "00100 00100 11011 11011 00100",
}  # fmt: skip
_KINDS = {2: "SH", 4: "SHDC", 13: "A23456789TJQK"}
"""Labels of cards, by how many kinds there are: colours, suits or ranks."""


def dim(color: Color) -> Color:
    """Return a third of the colour's brightness, for what the agent does not see."""
    red, green, blue = color
    return red // 3, green // 3, blue // 3


def cells(num_rows: int, num_columns: int, *, color: Color = BLACK) -> Image:
    """Return cells of one colour, [num_rows, num_columns, 3]."""
    return np.full((num_rows, num_columns, 3), color, dtype=np.uint8)


def draw_cells(colors: Image, *, marks: Sequence[tuple[int, int, Color]] = ()) -> Image:
    """Enlarge each pixel of `colors` to a square cell with a black edge.

    Args:
        colors: The cells, [R, C, 3].
        marks: Row, column and colour of cells that get a smaller square on top.
    """
    side = int(np.clip(_WIDTH // max(colors.shape[:2]), 5, 32))
    edge = side // 8
    image = enlarge(colors, factor=side)
    for offset in range(edge):
        image[offset::side] = 0
        image[:, offset::side] = 0
    quarter = side // 4
    for row, column, color in marks:
        top, left = row * side + quarter, column * side + quarter
        image[top : top + side - 2 * quarter, left : left + side - 2 * quarter] = color
    return image


def enlarge(image: Image, *, factor: int = 4) -> Image:
    """Return the image with each pixel repeated `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def add_border(image: Image, color: Color) -> Image:
    """Return the image inside a frame of one colour."""
    framed = cells(image.shape[0] + 2 * BORDER, image.shape[1] + 2 * BORDER, color=color)
    framed[BORDER:-BORDER, BORDER:-BORDER] = image
    return framed


def t_maze_cells(*, length: int, position: int, cue: int, shows_cue: bool) -> Image:
    """Return the cells of a T-maze: a corridor to the right, and an arm on either side of its end.

    Blue is the agent, green the rewarded arm, red the other. Yellow marks the cue's side, darkly
    where the agent does not see the cue. Long corridors are scaled to 100 cells.

    Args:
        length: Steps from the start to the junction.
        position: The agent's distance from the start; -1 is one cell behind it.
        cue: 0 is left (up), 1 is right (down).
        shows_cue: Whether the agent sees the cue.
    """
    num_cells = min(length, 100)
    column = 1 + round(position * num_cells / length) if position > 0 else 1 + position
    colors = cells(3, num_cells + 2)
    colors[1] = GRAY
    colors[2 * cue, 0] = YELLOW if shows_cue else dim(YELLOW)
    colors[2 * cue, -1], colors[2 - 2 * cue, -1] = GREEN, RED
    colors[1, column] = BLUE
    return colors


class Card(NamedTuple):
    """A playing card in a picture."""

    kind: int
    paper: Color = WHITE
    edge: Color = BLACK
    is_face_up: bool = True


def draw_cards(cards: Sequence[Card], *, num_kinds: int) -> Image:
    """Draw cards in rows of 26, red or black for 2 kinds, else with a suit or rank."""
    num_rows = -(-len(cards) // _CARDS_PER_ROW)
    num_columns = min(len(cards), _CARDS_PER_ROW)
    image = cells(num_rows * _CARD_HEIGHT, num_columns * _CARD_WIDTH)
    for index, card in enumerate(cards):
        row, column = divmod(index, _CARDS_PER_ROW)
        top, left = row * _CARD_HEIGHT, column * _CARD_WIDTH
        place = image[top : top + _CARD_HEIGHT, left : left + _CARD_WIDTH]
        place[1:-1, 1:-1] = card.edge
        place[3:-3, 3:-3] = card.paper
        if card.is_face_up:
            label = _KINDS[num_kinds][card.kind]
            ink = RED if label in "HD" else BLACK
            draw_glyph(place, label, color=ink)
    return image


def draw_glyph(image: Image, label: str, *, color: Color) -> None:
    """Write one character into the middle of an image, in pixels of 2 x 2."""
    rows = _GLYPHS[label].split()
    mask = np.array([[pixel == "1" for pixel in row] for row in rows])
    mask = mask.repeat(2, axis=0).repeat(2, axis=1)
    top, left = (image.shape[0] - mask.shape[0]) // 2, (image.shape[1] - mask.shape[1]) // 2
    image[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = color
