"""Rays of pixels, light and sky: what the two renderers share.

A picture has as many rows as columns. Pixel (row, column) looks along
forward * f + right * r + up * z, where for the walker's camera, pitched down by 5.71 degrees, with
r = (column + 0.5 - side / 2) step and b = -(row + 0.5 - side / 2) step,

    forward = cos + sin b,  right = r,  up = -sin + cos b.

Light comes from the camera: a surface shows 0.3 + 0.6 max(0, cosine between its normal and the
camera's axis) of its colour.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.textures import LOG2_SIDE, NUM_HALF_OCTAVES

COS_PITCH, SIN_PITCH = 0.99503719, 0.09950372
AHEAD = 0.15
"""The camera is this far ahead of the ball's centre, in metres."""
HEIGHT = 0.9
"""Above the floor, with the ball at rest."""
TAN_HALF_VIEW = math.tan(math.radians(40.0))
AMBIENT, DIFFUSE = 0.3, 0.6
_SKY_COLOR = np.array([0.4, 0.6, 0.8])


class ViewTables(NamedTuple):
    """What the walker's camera sees that does not depend on the maze."""

    row_slope: Float32[np.ndarray, " side"]
    """b of each row."""
    sky: UInt64[np.ndarray, "side side"]
    """The sky's colour, packed as texels are; depends on the ray alone."""
    floor_half_octave: Int32[np.ndarray, "side side"]
    """The half octave of the floor's textures at the camera's height at rest."""


@functools.cache
def view_tables(side: int, *, finest: int) -> ViewTables:
    """The tables for pictures of `side` pixels and textures from half octave `finest` on."""
    step = 2 * TAN_HALF_VIEW / side
    slope = -(np.arange(side) + 0.5 - side / 2) * step
    right = -slope[None, :]
    forward = (COS_PITCH + SIN_PITCH * slope)[:, None]
    up = (-SIN_PITCH + COS_PITCH * slope)[:, None]
    length = np.sqrt(forward**2 + right**2 + up**2)
    colors = np.floor(sky_color(up / length) + 0.5).astype(np.uint64)
    sky = colors[..., 0] | colors[..., 1] << np.uint64(16) | colors[..., 2] << np.uint64(32)
    # The footprint of a pixel on the floor, in texels of the finest mip level: the larger of the
    # picture's two directions.
    with np.errstate(divide="ignore"):
        distance = np.where(up < 0, HEIGHT / -up, np.inf)
    with np.errstate(invalid="ignore"):
        along_column = distance * np.hypot(
            SIN_PITCH - forward * COS_PITCH / up, right * COS_PITCH / up
        )
        texels = np.maximum(distance, along_column) * step * (1 << LOG2_SIDE) / 2
        half_octave = np.floor(2 * np.log2(texels) + 0.5)
    half_octave = np.where(up < 0, half_octave, 0).clip(finest, NUM_HALF_OCTAVES - 1)
    return ViewTables(slope.astype(np.float32), sky, half_octave.astype(np.int32))


def sky_color(sine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Red, green, blue [..., 3], 0 to 255, at the sine of an elevation; MuJoCo's gradient."""
    position = np.arcsin(sine) / (math.pi / 2)
    share = 0.5 * (1 + math.sqrt(2) * position / np.sqrt(1 + position**2))
    return 255 * share[..., None] * _SKY_COLOR
