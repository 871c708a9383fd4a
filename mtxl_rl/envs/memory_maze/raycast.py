"""Draws any view of a maze, ray by ray: over low walls, and from above.

It does what OpenGL does with four samples a pixel. Rays through four places of a pixel find the
surfaces that it shows. Each surface is coloured once, where its plane meets the pixel's middle.
Only pixels next to another surface need the four; the others take one ray. `span_renderer.py` draws
the common view many times faster; the tests compare both.

Lengths are metres. A surface is a number: 0 the sky, then floors, tops and sides of walls, spheres.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.camera import AMBIENT, DIFFUSE, SUBPIXELS, sky_share
from mtxl_rl.envs.memory_maze.kernels import claim, inlined, kernel
from mtxl_rl.envs.memory_maze.layout import FREE
from mtxl_rl.envs.memory_maze.observe import draw_border
from mtxl_rl.envs.memory_maze.spec import CELL
from mtxl_rl.envs.memory_maze.textures import (
    CORRIDOR_FLOOR,
    LOG2_SIDE,
    NUM_HALF_OCTAVES,
    TextureAtlas,
)

_SKY, _FLOOR, _TOP, _SIDE, _SPHERE = 0, 1, 16, 32, 1 << 20
_FAR = 1e30


class _Scene(NamedTuple):
    """The objects in view."""

    wall_texture: NDArray[np.uint8]
    is_room: NDArray[np.uint8]
    wall_height: float
    spheres: NDArray[np.float64]
    """[spheres, 7]: centre, radius, red, green, blue from 0 to 255."""


class _Ray(NamedTuple):
    """A ray from the camera; t measures in its direction's length."""

    x: float
    y: float
    z: float
    dx: float
    dy: float
    dz: float


@kernel
def draw_scenes(
    rows: NDArray[np.int64],
    cameras: NDArray[np.float64],
    tan_half_view: float,
    wall_textures: NDArray[np.uint8],
    is_room: NDArray[np.uint8],
    wall_height: float,
    spheres: NDArray[np.float64],
    atlas: TextureAtlas,
    images: NDArray[np.uint8],
    colors: NDArray[np.float32],
    current: NDArray[np.int64],
    border: int,
) -> None:
    """Draw the scenes of all environments.

    Args:
        rows: The environments that are left; see `kernels.claim`.
        cameras: [environments, 4, 3] the place, and the directions ahead, right and up.
        tan_half_view: Tangent of half the angle that the picture spans.
        wall_textures: [environments, n, n] index of the wall's texture, `FREE` without a wall.
        is_room: [environments, n, n] 1 where a room's floor is.
        wall_height: In metres.
        spheres: [environments, spheres, 7] centre, radius, red, green, blue.
        atlas: The textures.
        images: [environments, side, side, 3] is filled.
        colors: [environments, targets, 3] of the targets, from 0 to 255.
        current: [environments] the targets whose colours the borders show.
        border: Its width in pixels.
    """
    side = images.shape[1]
    surfaces = np.empty((side, side), np.int64)
    e = claim(rows)
    while e >= 0:
        scene = _Scene(wall_textures[e], is_room[e], wall_height, spheres[e])
        _draw_scene(cameras[e], tan_half_view, scene, atlas, surfaces, images[e])
        draw_border(images[e], border, colors[e, current[e]])
        e = claim(rows)


@kernel
def _draw_scene(
    camera: NDArray[np.float64],
    tan_half_view: float,
    scene: _Scene,
    atlas: TextureAtlas,
    surfaces: NDArray[np.int64],
    image: NDArray[np.uint8],
) -> None:
    side = len(surfaces)
    step = 2 * tan_half_view / side
    for row in range(side):
        for column in range(side):
            ray = _ray(camera, column + 0.5 - side / 2, row + 0.5 - side / 2, step)
            surfaces[row, column] = _surface(ray, scene)
    samples = np.empty(4, np.int64)
    color = np.empty(3)
    for row in range(side):
        for column in range(side):
            x, y = column + 0.5 - side / 2, row + 0.5 - side / 2
            samples[:] = surfaces[row, column]
            if _is_at_edge(surfaces, row, column):
                for k in range(4):
                    ray = _ray(camera, x + SUBPIXELS[k, 0], y + SUBPIXELS[k, 1], step)
                    samples[k] = _surface(ray, scene)
            _mix_colors(samples, x, y, step, camera, scene, atlas, color)
            for k in range(3):
                image[row, column, k] = np.uint8(color[k] + 0.5)


@kernel
def _mix_colors(
    surfaces: NDArray[np.int64],
    x: float,
    y: float,
    step: float,
    camera: NDArray[np.float64],
    scene: _Scene,
    atlas: TextureAtlas,
    color: NDArray[np.float64],
) -> None:
    """Set color [3] to the mean of four surfaces at (x, y); each different one is drawn once."""
    color[:] = 0.0
    for k in range(4):
        if k == 0 or not (surfaces[:k] == surfaces[k]).any():
            share = 0.25 * (surfaces == surfaces[k]).sum()
            _add_color(surfaces[k], share, x, y, step, camera, scene, atlas, color)


@inlined
def _ray(camera: NDArray[np.float64], x: float, y: float, step: float) -> _Ray:
    """Through the place (x, y) of the picture: pixels right of and below its middle."""
    a, b = x * step, -y * step
    return _Ray(
        camera[0, 0],
        camera[0, 1],
        camera[0, 2],
        camera[1, 0] + a * camera[2, 0] + b * camera[3, 0],
        camera[1, 1] + a * camera[2, 1] + b * camera[3, 1],
        camera[1, 2] + a * camera[2, 2] + b * camera[3, 2],
    )


@inlined
def _is_at_edge(surfaces: NDArray[np.int64], row: int, column: int) -> bool:
    """Whether one of the eight pixels around shows another surface."""
    side = len(surfaces)
    surface = surfaces[row, column]
    for y in range(max(row - 1, 0), min(row + 2, side)):
        for x in range(max(column - 1, 0), min(column + 2, side)):
            if surfaces[y, x] != surface:
                return True
    return False


@kernel
def _surface(ray: _Ray, scene: _Scene) -> int:
    """The surface that a ray meets first."""
    surface, nearest = _maze_surface(ray, scene)
    for k in range(len(scene.spheres)):
        t = _sphere_distance(ray, scene.spheres[k])
        if t < nearest:
            surface, nearest = _SPHERE + k, t
    return surface


@kernel
def _sphere_distance(ray: _Ray, sphere: NDArray[np.float64]) -> float:
    """T where a ray enters a sphere, or _FAR."""
    ox, oy, oz = ray.x - sphere[0], ray.y - sphere[1], ray.z - sphere[2]
    squared = ray.dx * ray.dx + ray.dy * ray.dy + ray.dz * ray.dz
    b = (ox * ray.dx + oy * ray.dy + oz * ray.dz) / squared
    inside = b * b - (ox * ox + oy * oy + oz * oz - sphere[3] ** 2) / squared
    if inside <= 0.0:
        return _FAR
    t = -b - math.sqrt(inside)
    return t if t > 0.0 else _FAR


@kernel
def _maze_surface(ray: _Ray, scene: _Scene) -> tuple[int, float]:
    """The floor, top or side that a ray meets first, and its t; cell by cell."""
    n = len(scene.wall_texture)
    gx, gy = ray.x / CELL + 0.5 * n, 0.5 * n - ray.y / CELL
    column, row = math.floor(gx), math.floor(gy)
    dx, dy = ray.dx / CELL, -ray.dy / CELL
    per_column = 1.0 / max(abs(dx), 1e-12)
    per_row = 1.0 / max(abs(dy), 1e-12)
    to_column = abs(column + (dx >= 0.0) - gx) * per_column
    to_row = abs(row + (dy >= 0.0) - gy) * per_row
    # Where it passes the walls' height and the floor, if it goes down.
    to_top = (scene.wall_height - ray.z) / ray.dz if ray.dz < 0.0 else _FAR
    to_floor = -ray.z / ray.dz if ray.dz < 0.0 else _FAR
    entered, axis = 0.0, -1
    while 0 <= column < n and 0 <= row < n:
        left = min(to_column, to_row)
        texture = int(scene.wall_texture[row, column])
        if texture == FREE:
            if to_floor <= left:
                return _FLOOR + int(scene.is_room[row, column]), to_floor
        elif axis >= 0 and ray.z + entered * ray.dz < scene.wall_height:
            line = column + axis if axis < 2 else row + axis - 2
            return _SIDE + (axis * 64 + line) * 16 + texture, entered
        elif entered <= to_top <= left:
            return _TOP + texture, to_top
        entered = left
        if to_column < to_row:
            to_column += per_column
            column += 1 if dx >= 0.0 else -1
            axis = 0 if dx >= 0.0 else 1
        else:
            to_row += per_row
            row += 1 if dy >= 0.0 else -1
            axis = 2 if dy >= 0.0 else 3
    return _SKY, _FAR


@kernel
def _add_color(
    surface: int,
    share: float,
    x: float,
    y: float,
    step: float,
    camera: NDArray[np.float64],
    scene: _Scene,
    atlas: TextureAtlas,
    color: NDArray[np.float64],
) -> None:
    """Add a surface's colour at a place (x, y) of the picture, times a share, to color [3]."""
    ray = _ray(camera, x, y, step)
    if surface == _SKY:
        length = math.sqrt(ray.dx * ray.dx + ray.dy * ray.dy + ray.dz * ray.dz)
        light = 255.0 * sky_share(ray.dz / length)
        # MuJoCo's first colour; the second one is black.
        color[0] += share * math.floor(0.4 * light + 0.5)
        color[1] += share * math.floor(0.6 * light + 0.5)
        color[2] += share * math.floor(0.8 * light + 0.5)
    elif surface >= _SPHERE:
        sphere = scene.spheres[surface - _SPHERE]
        light = _sphere_light(ray, camera[1], sphere)
        for k in range(3):
            color[k] += share * math.floor(min(sphere[4 + k] * light, 255.0) + 0.5)
    else:
        n = len(scene.wall_texture)
        u, v = _place(surface, ray, n, scene.wall_height)
        right = _ray(camera, x + 1.0, y, step)
        below = _ray(camera, x, y + 1.0, step)
        u1, v1 = _place(surface, right, n, scene.wall_height)
        u2, v2 = _place(surface, below, n, scene.wall_height)
        footprint = max(math.hypot(u1 - u, v1 - v), math.hypot(u2 - u, v2 - v))
        light = share * _plane_light(surface, camera[1])
        _add_texel(_texture(surface), u, v, footprint, light, atlas, color)


@inlined
def _texture(surface: int) -> int:
    if surface < _TOP:
        return CORRIDOR_FLOOR + surface - _FLOOR
    return (surface - _TOP) % 16


@inlined
def _place(surface: int, ray: _Ray, n: int, wall_height: float) -> tuple[float, float]:
    """Point where a ray meets a surface's plane, in tiles right and down as seen from outside."""
    if surface < _SIDE:
        t = ((wall_height if surface >= _TOP else 0.0) - ray.z) / ray.dz
        return (ray.x + t * ray.dx) / CELL + 0.5 * n, 0.5 * n - (ray.y + t * ray.dy) / CELL
    axis, line = (surface - _SIDE) // 16 // 64, (surface - _SIDE) // 16 % 64
    if axis < 2:
        t = ((line - 0.5 * n) * CELL - ray.x) / ray.dx
        along = 0.5 * n - (ray.y + t * ray.dy) / CELL
    else:
        t = ((0.5 * n - line) * CELL - ray.y) / ray.dy
        along = (ray.x + t * ray.dx) / CELL + 0.5 * n
    sign = 1.0 if axis in (0, 3) else -1.0
    return sign * along, (wall_height - ray.z - t * ray.dz) / CELL


@inlined
def _plane_light(surface: int, ahead: NDArray[np.float64]) -> float:
    """The light of a floor, top or side from a camera that looks ahead [3]."""
    toward = -ahead[2]
    if surface >= _SIDE:
        axis = (surface - _SIDE) // 16 // 64
        if axis < 2:
            toward = ahead[0] if axis == 0 else -ahead[0]
        else:
            toward = -ahead[1] if axis == 2 else ahead[1]
    return AMBIENT + DIFFUSE * max(toward, 0.0)


@inlined
def _sphere_light(ray: _Ray, ahead: NDArray[np.float64], sphere: NDArray[np.float64]) -> float:
    """The light where a ray meets a sphere, or comes nearest to it."""
    ox, oy, oz = ray.x - sphere[0], ray.y - sphere[1], ray.z - sphere[2]
    squared = ray.dx * ray.dx + ray.dy * ray.dy + ray.dz * ray.dz
    b = (ox * ray.dx + oy * ray.dy + oz * ray.dz) / squared
    inside = b * b - (ox * ox + oy * oy + oz * oz - sphere[3] ** 2) / squared
    t = -b - math.sqrt(max(inside, 0.0))
    toward = (
        (ox + t * ray.dx) * ahead[0] + (oy + t * ray.dy) * ahead[1] + (oz + t * ray.dz) * ahead[2]
    )
    return AMBIENT + DIFFUSE * max(-toward / sphere[3], 0.0)


@kernel
def _add_texel(
    texture: int,
    u: float,
    v: float,
    footprint: float,
    light: float,
    atlas: TextureAtlas,
    color: NDArray[np.float64],
) -> None:
    """Add a texture's bilinear colour at (u, v), in tiles, times a light, to color [3]."""
    half_octave = math.floor(2.0 * math.log2(max(footprint, 1e-9) * (1 << LOG2_SIDE)) + 0.5)
    half_octave = min(max(half_octave, 0), NUM_HALF_OCTAVES - 1)
    side = 1 << (LOG2_SIDE - half_octave // 2)
    x, y = (u - math.floor(u)) * side - 0.5, (v - math.floor(v)) * side - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    column, row = x0 % side, y0 % side
    offset = atlas.offsets[texture, half_octave]
    for k in range(4):
        right, below = k % 2, k // 2
        weight = (1.0 - abs(x - x0 - right)) * (1.0 - abs(y - y0 - below)) * light
        texel = atlas.texels[offset + (row + below) * (side + 1) + column + right]
        for channel in range(3):
            color[channel] += weight * float(texel >> np.uint32(8 * channel) & np.uint32(255))
