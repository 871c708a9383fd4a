"""Pictures of walls and floors for machines without the original's: panels of the same colours.

Each picture's mean colour is that of the original's picture, so walls are as easy to tell apart.
The patterns are simpler.
"""

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

_SIDE = 1024
_MEAN_COLORS = (
    (31.6, 115.9, 176.9),  # walls: blue
    (168.9, 65.0, 102.9),  # cerise
    (165.9, 197.2, 156.4),  # green_bright
    (84.7, 120.3, 75.5),  # green
    (68.0, 79.8, 175.7),  # purple
    (213.3, 123.5, 103.5),  # red_bright
    (142.6, 32.1, 25.6),  # red
    (195.9, 168.6, 37.7),  # yellow
    (54.4, 88.5, 109.0),  # floors: blue
    (110.6, 148.2, 169.7),  # blue_bright
)
"""Colours in the order of `texture_files.texture_paths`."""
_NUM_FLOORS = 2
_NUM_PANELS, _PANEL_CONTRAST, _LINE_BRIGHTNESS = 8, 0.12, 0.4
_NUM_TILES, _TILE_CONTRAST, _GROOVE_BRIGHTNESS = 16, 0.06, 0.85


def procedural_pictures() -> list[Float32[np.ndarray, "1024 1024 3"]]:
    """The pictures, colours from 0 to 255, in the order of `texture_files.texture_paths`."""
    random = np.random.RandomState(0)
    num_walls = len(_MEAN_COLORS) - _NUM_FLOORS
    wall = _panels(random, _NUM_PANELS, contrast=_PANEL_CONTRAST, line=_LINE_BRIGHTNESS)
    # A plinth shows which way is down.
    wall[-_SIDE // 16 :] *= 0.6
    floor = _panels(random, _NUM_TILES, contrast=_TILE_CONTRAST, line=_GROOVE_BRIGHTNESS)
    return [
        _colored(wall if index < num_walls else floor, color)
        for index, color in enumerate(_MEAN_COLORS)
    ]


def _panels(
    random: np.random.RandomState, count: int, *, contrast: float, line: float
) -> NDArray[np.float32]:
    """The brightness of `count` x `count` panels with dark lines around them."""
    side = _SIDE // count
    brightness = 1 + contrast * random.uniform(-1, 1, (count, count))
    picture = brightness.repeat(side, axis=0).repeat(side, axis=1)
    is_line = np.arange(_SIDE) % side < side // 16
    picture[is_line] *= line
    picture[:, is_line] *= line
    return picture.astype(np.float32)


def _colored(brightness: NDArray[np.float32], color: tuple[float, ...]) -> NDArray[np.float32]:
    relative = brightness[:, :, None] / brightness.mean()
    return np.clip(relative * np.array(color, np.float32), 0, 255).astype(np.float32)
