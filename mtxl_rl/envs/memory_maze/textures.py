"""The textures of walls and floors as mip pyramids with half octaves, in one array.

OpenGL blends the two nearest mip levels for each pixel. Here every level and the mean of every two
neighbours are made beforehand, and a pixel takes the nearest of these half octaves.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt32
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.png import read_png
from mtxl_rl.envs.memory_maze.procedural import procedural_pictures
from mtxl_rl.envs.memory_maze.texture_files import (
    DOWNLOAD_COMMAND,
    FLOOR_TEXTURES,
    PROCEDURAL,
    WALL_TEXTURES,
    original_folder,
    texture_paths,
)

CORRIDOR_FLOOR, ROOM_FLOOR = len(WALL_TEXTURES), len(WALL_TEXTURES) + 1
"""Indices of the floors' textures, after those of the walls."""
LOG2_SIDE = 10
"""Textures have 1024 x 1024 texels; half octave h has 1024 >> (h // 2) on a side. It repeats its
first row below and its first column to the right, so that neighbours need no wrapping."""
NUM_HALF_OCTAVES = 2 * LOG2_SIDE


class TextureAtlas(NamedTuple):
    """All textures."""

    texels: UInt32[np.ndarray, " texels"]
    """Red in bits 0 to 7, green in 8 to 15, blue in 16 to 23."""
    offsets: Int32[np.ndarray, "textures half_octaves"]
    """Index of each half octave's first texel."""


@functools.cache
def load_atlas(textures: str) -> TextureAtlas:
    """The atlas, 70 MB, shared by all environments of a process.

    Args:
        textures: ``original`` or ``procedural``.
    """
    parts: list[NDArray[np.uint32]] = []
    offsets = np.zeros((len(WALL_TEXTURES) + len(FLOOR_TEXTURES), NUM_HALF_OCTAVES), np.int32)
    total = 0
    for index, picture in enumerate(_pictures(textures)):
        levels = _mip_levels(picture)
        for half_octave in range(NUM_HALF_OCTAVES):
            if half_octave == 1:
                # Only walls that the camera almost touches need it; it would take 42 MB.
                offsets[index, 1] = offsets[index, 0]
                continue
            level = levels[half_octave // 2]
            if half_octave % 2:
                level = 0.5 * (level + _twice_as_large(levels[half_octave // 2 + 1]))
            offsets[index, half_octave] = total
            parts.append(_packed(level))
            total += len(parts[-1])
    return TextureAtlas(np.concatenate(parts), offsets)


def _pictures(textures: str) -> list[NDArray[np.float32]]:
    if textures == PROCEDURAL:
        return [np.floor(picture + np.float32(0.5)) for picture in procedural_pictures()]
    folder = original_folder()
    if folder is None:
        raise ValueError(
            f"env.textures={textures} needs the original's pictures, which are not on this "
            f"machine. Download them with {DOWNLOAD_COMMAND}, or set env.textures=procedural."
        )
    return [read_png(path).astype(np.float32) for path in texture_paths(folder)]


def _mip_levels(texels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The texture, its 2 x 2 means rounded as a driver does, the means of these, ..."""
    levels = [texels]
    while len(levels[-1]) > 1:
        x = levels[-1]
        mean = (x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]) * np.float32(0.25)
        levels.append(np.floor(mean + np.float32(0.5)))
    return levels


def _twice_as_large(texels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bilinear, repeating at the borders, texel centres where OpenGL has them."""
    for axis in (0, 1):
        nearer = np.float32(0.75) * texels
        before = nearer + np.float32(0.25) * np.roll(texels, 1, axis)
        after = nearer + np.float32(0.25) * np.roll(texels, -1, axis)
        shape = list(texels.shape)
        shape[axis] *= 2
        texels = np.stack([before, after], axis=axis + 1).reshape(shape)
    return texels


def _packed(level: NDArray[np.float32]) -> NDArray[np.uint32]:
    rgb = np.floor(level + np.float32(0.5)).astype(np.uint32)
    texels = rgb[..., 0] | rgb[..., 1] << np.uint32(8) | rgb[..., 2] << np.uint32(16)
    return np.pad(texels, (0, 1), mode="wrap").ravel()
