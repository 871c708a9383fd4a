"""Reads the PNG files that labmaze ships: 8 bits a channel, not interlaced."""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.kernels import inlined, kernel

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 3: 1, 6: 4}  # of colour types: RGB, palette, RGBA


def read_png(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The picture's colours; an alpha channel is left out. PNG specification, chapters 9 and 11."""
    data = path.read_bytes()
    chunks: dict[bytes, bytes] = {}
    offset = len(_SIGNATURE)
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        chunks[kind] = chunks.get(kind, b"") + data[offset + 8 : offset + 8 + length]
        offset += 12 + length
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert data.startswith(_SIGNATURE), path
    assert (bits, interlaced) == (8, 0), (path, bits, interlaced)
    channels = _CHANNELS[color_type]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8)
    pixels = lines.reshape(height, 1 + width * channels).copy()
    unfilter(pixels, channels)
    values = pixels[:, 1:].reshape(height, width, channels)
    if color_type == 3:
        palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        return palette[values[:, :, 0]]
    return np.ascontiguousarray(values[:, :, :3])


@kernel
def unfilter(lines: NDArray[np.uint8], channels: int) -> None:
    """Undo PNG's filters in place; lines [height, 1 + bytes] start with their filter's number."""
    height, length = lines.shape
    for y in range(height):
        kind = lines[y, 0]
        for x in range(1, length):
            left = np.int32(lines[y, x - channels]) if x > channels else np.int32(0)
            up = np.int32(lines[y - 1, x]) if y > 0 else np.int32(0)
            if kind == 0:
                guess = np.int32(0)
            elif kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) >> 1
            else:
                corner = np.int32(lines[y - 1, x - channels]) if y > 0 and x > channels else 0
                guess = np.int32(_paeth(int(left), int(up), int(corner)))
            lines[y, x] = np.uint8((np.int32(lines[y, x]) + guess) & 255)


@inlined
def _paeth(left: int, up: int, corner: int) -> int:
    """The neighbour that is nearest to left + up - corner."""
    a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if a <= b and a <= c:
        return left
    return up if b <= c else corner
