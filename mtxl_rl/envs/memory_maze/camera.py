"""Rays of pixels, light and sky: what the two renderers share.

A picture has as many rows as columns. Pixel (row, column) looks along
forward * f + right * r + up * z. The walker's camera is pitched down by 5.71 degrees. With
r = (column + 0.5 - side / 2) step and b = -(row + 0.5 - side / 2) step,

    forward = cos + sin b,  right = r,  up = -sin + cos b.

Light comes from the camera: a surface shows 0.3 + 0.6 max(0, cosine between its normal and the
camera's axis) of its colour.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import kernel
from mtxl_rl.envs.memory_maze.spec import CELL
from mtxl_rl.envs.memory_maze.textures import LOG2_SIDE, NUM_HALF_OCTAVES

COS_PITCH, SIN_PITCH = 0.99503719, 0.09950372
AHEAD = 0.15
"""The camera is this far ahead of the ball's centre, in metres."""
HEIGHT = 0.9
"""Above the floor, with the ball at rest."""
TAN_HALF_VIEW = math.tan(math.radians(40.0))
AMBIENT, DIFFUSE = 0.3, 0.6
SUBPIXELS = np.array([[0.375, 0.125], [0.875, 0.375], [0.125, 0.625], [0.625, 0.875]]) - 0.5
"""The four places of a pixel, from its middle, where OpenGL's drivers test what covers it."""
TOP_HEIGHT = 100.0
_TOP_PADDING = 1.1  # the top camera sees this many times the maze's side
_SKY_COLOR = np.array([0.4, 0.6, 0.8])


class ViewTables(NamedTuple):
    """Tables of the walker's view that do not depend on the maze."""

    row_slope: Float32[np.ndarray, " side"]
    """b of each row."""
    sky: UInt64[np.ndarray, "side side"]
    """The sky's colour, red in bits 0 to 7, green in 16 to 23, blue in 32 to 39; depends on the
    ray alone."""
    floor_half_octave: Int32[np.ndarray, "side side"]
    """The half octave of the floor's textures at the camera's height at rest."""


@functools.cache
def view_tables(side: int) -> ViewTables:
    """The tables for pictures of `side` pixels."""
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
    half_octave = np.where(up < 0, half_octave, 0).clip(0, NUM_HALF_OCTAVES - 1)
    return ViewTables(slope.astype(np.float32), sky, half_octave.astype(np.int32))


def sky_color(sine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Red, green, blue [..., 3], 0 to 255, at the sine of an elevation."""
    share = np.array([sky_share(float(value)) for value in sine.ravel()]).reshape(sine.shape)
    return 255 * share[..., None] * _SKY_COLOR


@kernel
def sky_share(sine: float) -> float:
    """Share of the sky's colour at the sine of an elevation; MuJoCo's gradient."""
    position = math.asin(sine) / (math.pi / 2)
    share = 0.5 * (1.0 + math.sqrt(2.0) * position / math.sqrt(1.0 + position * position))
    return min(max(share, 0.0), 1.0)


def walker_cameras(
    position: Float64[np.ndarray, "B 5"],
) -> Float64[np.ndarray, "B 4 3"]:
    """Place, ahead, right and up of the camera of walkers at x, y, height, heading, roll."""
    cos, sin = np.cos(position[:, 3]), np.sin(position[:, 3])
    zeros, ones = np.zeros_like(cos), np.ones_like(cos)
    place = [position[:, 0] + AHEAD * cos, position[:, 1] + AHEAD * sin, HEIGHT + position[:, 2]]
    ahead = [COS_PITCH * cos, COS_PITCH * sin, -SIN_PITCH * ones]
    up = [SIN_PITCH * cos, SIN_PITCH * sin, COS_PITCH * ones]
    return np.stack([np.stack(v, -1) for v in (place, ahead, [sin, -cos, zeros], up)], axis=1)


def top_cameras(num_envs: int) -> Float64[np.ndarray, "B 4 3"]:
    """Place, ahead, right and up of cameras that look down."""
    camera = np.array([[0.0, 0.0, TOP_HEIGHT], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return np.tile(camera, (num_envs, 1, 1))


def tan_half_top_view(grid: int) -> float:
    """Half view, as a tangent, of the camera above a maze of `grid` cells with the outer wall."""
    return _TOP_PADDING * grid * CELL / 2 / TOP_HEIGHT
