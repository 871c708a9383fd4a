"""Draws the walker's view: the fast renderer, for walls that are higher than the camera.

No wall hides behind another one then, so a picture is a sequence of wall *faces* from left to
right, and every picture row crosses every face once. A row becomes a list of *samples*, each a
place in a texture, a pixel and a weight. Pixels on an edge take several, weighted by the share of
the pixel that each covers (the original takes four samples a pixel there). All samples of a row
are looked up in one go.

Lengths are in cells here. t measures along the rays of `camera.py`. A ray meets a face where
1 / t = forward * per_forward + right * per_right, which is linear in the pixel's column.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.camera import (
    AHEAD,
    AMBIENT,
    COS_PITCH,
    DIFFUSE,
    HEIGHT,
    SIN_PITCH,
    SUBPIXELS,
    TAN_HALF_VIEW,
    ViewTables,
)
from mtxl_rl.envs.memory_maze.kernels import (
    bare_kernel,
    blend_texels,
    floor_log2,
    inlined,
    kernel,
    prefetch,
)
from mtxl_rl.envs.memory_maze.layout import FREE
from mtxl_rl.envs.memory_maze.spec import CELL, TARGET_RADIUS
from mtxl_rl.envs.memory_maze.textures import (
    CORRIDOR_FLOOR,
    LOG2_SIDE,
    NUM_HALF_OCTAVES,
    TextureAtlas,
)

_F = np.float32
_HALF = _F(0.5)
_ONE = _F(1.0)
_COS, _SIN = _F(COS_PITCH), _F(SIN_PITCH)
# The largest right / forward that any pixel has: the lowest row's corner.
_WIDEST = TAN_HALF_VIEW / (COS_PITCH - SIN_PITCH * TAN_HALF_VIEW) + 1e-3
_RAYS_PER_PIXEL = 1.5
_NEAREST = 1e-4  # a camera does not come closer to a face
# Texture coordinates are shifted by whole tiles to be positive: truncating is then rounding down.
_TILES = _F(64.0)
_FLOOR_LIGHT = (AMBIENT + DIFFUSE * SIN_PITCH) * 256
_LOG2_SIDE = np.int32(LOG2_SIDE)
_COARSEST = np.int32(NUM_HALF_OCTAVES - 1)
_SQRT_TWO = _F(math.sqrt(2.0))  # half an octave, to round
_FAR_COLUMN = _F(10000.0)
# The three channels in one word, 16 bits each.
_ROUND = np.uint64(0x0000008000800080)
_EIGHT = np.uint64(8)
_BYTE = np.int32(255)
_ROWS_AHEAD = np.uint32(3)
_SUBPIXELS = SUBPIXELS.astype(np.float32)

# Columns of the table of faces.
_LEFT, _PER_FORWARD, _PER_RIGHT, _ALONG, _ALONG_FORWARD, _ALONG_RIGHT, _LIGHT = range(7)


class _View(NamedTuple):
    """The camera, on the grid: x counts columns and y rows from the top."""

    x: np.float32
    y: np.float32
    cos: np.float32
    """The direction ahead is (cos, -sin); to the right is (sin, cos)."""
    sin: np.float32
    height: np.float32
    """Above the floor."""
    top: np.float32
    """The walls' top, above the camera."""
    step: np.float32
    """Increment of right, or b, per pixel; see `camera.py`."""
    center: np.float32
    """The column whose ray has right = 0."""


class _Row(NamedTuple):
    """A row of the picture."""

    forward: np.float32
    up: np.float32
    limit: np.float32
    """A wall ends, at its top or at the floor, where 1 / t is smaller."""
    limit_per_row: np.float32
    """Increment of `limit` per row."""


class _Edge(NamedTuple):
    """Column at which a face ends in a row, at its top or at the floor."""

    value: np.float32
    """The face's share of a pixel at column c is value + per_column c + 1 / 2, within 0 to 1."""
    per_column: np.float32


class _Stretch(NamedTuple):
    """A row's columns before one face: the face itself, and sky or floor beyond its edge."""

    first: int
    last: int
    left: np.float32
    """Where the face begins; the first column may hold a part of its neighbour, too."""
    right: np.float32
    edge: _Edge


class _Hit(NamedTuple):
    """A wall cell, and which of its faces a ray met."""

    axis: int
    """0: the face's outside looks to smaller columns, 1: larger columns, 2 and 3: rows."""
    column: int
    row: int


class _Sphere(NamedTuple):
    """A sphere as the camera sees it."""

    forward: np.float32
    right: np.float32
    up: np.float32
    radius: np.float32


class _Samples(NamedTuple):
    """Pixels of a row, and where in a texture each of them is looked up.

    One loop sets them without branches or look-ups, so that the vector units process eight
    together; a second loop looks them up.
    """

    half_octave: NDArray[np.uint32]
    """[side]."""
    stride: NDArray[np.uint32]
    """Texels in the half octave's rows, [side]."""
    place: NDArray[np.uint32]
    """Index of the upper left of four texels, from the half octave's first, [side]."""
    x: NDArray[np.uint32]
    """Distance to the right of that one, in 1/256 of a texel, [side]."""
    y: NDArray[np.uint32]
    """Distance below it, in the same unit, [side]."""
    weight: NDArray[np.uint32]
    """[side]."""
    cell_row: NDArray[np.uint32]
    """The maze's cell, on floors, [side]."""
    cell_column: NDArray[np.uint32]
    """[side]."""


class Canvas(NamedTuple):
    """Working memory of `draw_view`."""

    faces: NDArray[np.float32]
    face_textures: NDArray[np.int64]
    colors: NDArray[np.uint64]
    samples: _Samples


@kernel
def new_canvas(side: int) -> Canvas:
    """Return working memory of any content, for pictures of `side` pixels."""
    max_faces = int(_RAYS_PER_PIXEL * side) + 1
    samples = _Samples(
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
        np.empty(side, np.uint32),
    )
    return Canvas(
        np.empty((max_faces, 7), np.float32),
        np.empty(max_faces, np.int64),
        np.empty(side, np.uint64),
        samples,
    )


@bare_kernel
def draw_view(
    pose: NDArray[np.float64],
    wall_texture: NDArray[np.uint8],
    is_room: NDArray[np.uint8],
    wall_height: float,
    targets: NDArray[np.float64],
    target_colors: NDArray[np.float32],
    target_height: float,
    atlas: TextureAtlas,
    tables: ViewTables,
    image: NDArray[np.uint8],
    canvas: Canvas,
) -> None:
    """Draw the view of one environment.

    Args:
        pose: [at least 4] x, y, height above rest in metres, heading in radians.
        wall_texture: [n, n] index of the wall's texture, `FREE` without a wall.
        is_room: [n, n] 1 where a room's floor is.
        wall_height: In metres, above the camera.
        targets: [targets, 2] centres in metres.
        target_colors: [targets, 3] from 0 to 255.
        target_height: Of the targets' centres in metres.
        atlas: The textures.
        tables: What depends on the picture's size alone.
        image: [side, side, 3] is filled.
        canvas: Working memory.
    """
    faces, face_textures, colors, samples = canvas
    n, side = wall_texture.shape[0], image.shape[0]
    view = _view_from(pose, wall_height, n, side)
    num_faces = _find_faces(view, wall_texture, side, faces, face_textures)
    for row in range(side):
        _draw_row(
            row, view, num_faces, faces, face_textures, is_room, atlas, tables, colors, samples
        )
        for column in range(side):
            color = (colors[column] + _ROUND) >> _EIGHT
            image[row, column, 0] = np.uint8(color)
            image[row, column, 1] = np.uint8(color >> np.uint64(16))
            image[row, column, 2] = np.uint8(color >> np.uint64(32))
    for k in range(len(targets)):
        _draw_sphere(
            view,
            _F(targets[k, 0] / CELL + 0.5 * n) - view.x,
            _F(0.5 * n - targets[k, 1] / CELL) - view.y,
            _F(target_height / CELL) - view.height,
            target_colors[k],
            num_faces,
            faces,
            tables.row_slope,
            image,
        )


@inlined
def _view_from(pose: NDArray[np.float64], wall_height: float, n: int, side: int) -> _View:
    """The view from a pose in a maze of n x n cells, in a picture of `side` pixels."""
    height = (HEIGHT + pose[2]) / CELL
    return _View(
        x=_F((pose[0] + AHEAD * math.cos(pose[3])) / CELL + 0.5 * n),
        y=_F(0.5 * n - (pose[1] + AHEAD * math.sin(pose[3])) / CELL),
        cos=_F(math.cos(pose[3])),
        sin=_F(math.sin(pose[3])),
        height=_F(height),
        top=_F(wall_height / CELL - height),
        step=_F(2 * TAN_HALF_VIEW / side),
        center=_F(0.5 * side - 0.5),
    )


@bare_kernel
def _find_faces(
    view: _View,
    wall_texture: NDArray[np.uint8],
    side: int,
    faces: NDArray[np.float32],
    face_textures: NDArray[np.int64],
) -> int:
    """Fill the table of faces by horizontal rays through the view; return how many there are."""
    num_rays = int(_RAYS_PER_PIXEL * side)
    widest = _F(_WIDEST)
    spacing = _F(2.0) * widest / _F(num_rays)
    count = 0
    last_line = last_texture = -1
    last_hit = _Hit(-1, -1, -1)
    for ray in range(num_rays + 1):
        slope = -widest + spacing * _F(ray)
        hit = _cast(view, slope, wall_texture)
        line = _line(hit)
        texture = int(wall_texture[hit.row, hit.column])
        if hit.axis != last_hit.axis or line != last_line or texture != last_texture:
            _set_face(view, hit.axis, line, faces[count])
            face_textures[count] = texture
            faces[count, _LEFT] = -widest - _ONE
            if count > 0:
                faces[count, _LEFT] = _edge_between(view, slope - spacing, slope, last_hit, hit)
            count += 1
        last_hit, last_line, last_texture = hit, line, texture
    return count


@inlined
def _cast(view: _View, slope: np.float32, wall_texture: NDArray[np.uint8]) -> _Hit:
    """The wall cell that the horizontal ray with right / forward = slope meets."""
    dx, dy = view.cos + slope * view.sin, -view.sin + slope * view.cos
    column, row = int(view.x), int(view.y)
    per_column, per_row = _ONE / max(abs(dx), _F(1e-9)), _ONE / max(abs(dy), _F(1e-9))
    column_step = 1 if dx >= 0 else -1
    row_step = 1 if dy >= 0 else -1
    to_column = per_column * abs(_F(column + (dx >= 0)) - view.x)
    to_row = per_row * abs(_F(row + (dy >= 0)) - view.y)
    crosses_column = True
    while wall_texture[row, column] == FREE:
        crosses_column = bool(to_column < to_row)
        if crosses_column:
            to_column += per_column
            column += column_step
        else:
            to_row += per_row
            row += row_step
    if crosses_column:
        return _Hit(0 if dx >= 0 else 1, column, row)
    return _Hit(2 if dy >= 0 else 3, column, row)


@inlined
def _line(hit: _Hit) -> int:
    """The grid line on which a face lies."""
    return hit.column + hit.axis if hit.axis < 2 else hit.row + hit.axis - 2


@bare_kernel
def _edge_between(
    view: _View, low: np.float32, high: np.float32, left: _Hit, right: _Hit
) -> np.float32:
    """Where, as right / forward, one face ends and the next begins between two rays.

    That is the nearest corner of the two faces' cells that lies between the rays.
    """
    best = _HALF * (low + high)
    nearest = _F(1e30)
    for corner in range(4):
        hit = left if corner < 2 else right
        line, end = _line(hit), corner % 2
        dx = _F(line if hit.axis < 2 else hit.column + end) - view.x
        dy = _F(hit.row + end if hit.axis < 2 else line) - view.y
        forward = dx * view.cos - dy * view.sin
        if forward > _F(1e-6) and forward < nearest:
            slope = (dx * view.sin + dy * view.cos) / forward
            if slope >= low - _F(1e-6) and slope <= high + _F(1e-6):
                best, nearest = slope, forward
    return best


@inlined
def _set_face(view: _View, axis: int, line: int, face: NDArray[np.float32]) -> None:
    """Fill a face's row from its axis and the grid line on which it lies."""
    sign = _ONE if axis % 2 == 0 else -_ONE
    if axis < 2:
        distance, forward, right = _F(line) - view.x, view.cos, view.sin
        along, along_forward, along_right = view.y, -view.sin, view.cos
        along_sign = sign
    else:
        distance, forward, right = _F(line) - view.y, -view.sin, view.cos
        along, along_forward, along_right = view.x, view.cos, view.sin
        along_sign = -sign
    distance = max(sign * distance, _F(_NEAREST))
    face[_PER_FORWARD] = sign * forward / distance
    face[_PER_RIGHT] = sign * right / distance
    # Textures run to the right as seen from outside.
    face[_ALONG] = _TILES + along_sign * along
    face[_ALONG_FORWARD] = along_sign * along_forward
    face[_ALONG_RIGHT] = along_sign * along_right
    face[_LIGHT] = _F(AMBIENT) + _F(DIFFUSE) * max(sign * forward * _COS, _F(0.0))


@inlined
def _draw_row(
    number: int,
    view: _View,
    num_faces: int,
    faces: NDArray[np.float32],
    face_textures: NDArray[np.int64],
    is_room: NDArray[np.uint8],
    atlas: TextureAtlas,
    tables: ViewTables,
    colors: NDArray[np.uint64],
    samples: _Samples,
) -> None:
    """Fill a row's colours [side], times 256, face by face."""
    side = len(colors)
    colors[:] = np.uint64(0)
    slope = tables.row_slope[number]
    up = -_SIN + _COS * slope
    reach = view.top if up >= 0 else view.height
    per_row = (-view.step * _COS if up >= 0 else view.step * _COS) / reach
    row = _Row(_COS + _SIN * slope, up, abs(up) / reach, per_row)
    columns_per_slope = row.forward / view.step
    # A face's left end in columns; a pixel reaches half a column to each side.
    left = -_HALF
    for j in range(num_faces):
        right = _F(side) - _HALF
        if j < num_faces - 1:
            right = min(faces[j + 1, _LEFT] * columns_per_slope + view.center, right)
        if right <= left:
            continue
        first, last = int(left + _HALF), min(int(right + _HALF), side - 1)
        edge = _edge_in_row(row, view, faces[j])
        stretch = _Stretch(first, last, left, right, edge)
        ends = edge.value + edge.per_column * _F(first), edge.value + edge.per_column * _F(last)
        if max(ends[0], ends[1]) > -_HALF:
            _add_wall(stretch, row, view, faces[j], face_textures[j], atlas, colors, samples)
        if min(ends[0], ends[1]) < _HALF:
            if up >= 0:
                _add_sky(stretch, tables.sky[number], colors)
            else:
                half_octaves = tables.floor_half_octave[number]
                _add_floor(stretch, row, view, is_room, atlas, half_octaves, colors, samples)
        left = right


@inlined
def _edge_in_row(row: _Row, view: _View, face: NDArray[np.float32]) -> _Edge:
    """Where a face ends in a row.

    How fast 1 / t passes the row's limit, per column and per row, turns their difference into
    pixels.
    """
    per_column = face[_PER_RIGHT] * view.step
    inverse = row.forward * face[_PER_FORWARD] - per_column * view.center
    down = -view.step * _SIN * face[_PER_FORWARD] - row.limit_per_row
    scale = _ONE / (math.sqrt(per_column * per_column + down * down) + _F(1e-9))
    return _Edge((inverse - row.limit) * scale, per_column * scale)


@inlined
def _share(column: np.float32, stretch: _Stretch) -> np.float32:
    """The share of a pixel that lies within a stretch."""
    return min(column + _HALF, stretch.right) - max(column - _HALF, stretch.left)


@inlined
def _covered(column: np.float32, edge: _Edge) -> np.float32:
    """The share of a pixel on the wall's side of its edge."""
    return min(max(edge.value + edge.per_column * column + _HALF, _F(0.0)), _ONE)


@inlined
def _columns_above(stretch: _Stretch, value: np.float32, per_column: np.float32) -> tuple[int, int]:
    """The part [start, end) of a stretch where value + per_column c is positive."""
    start, end = stretch.first, stretch.last + 1
    if abs(per_column) < _F(1e-7):
        if value <= 0:
            end = start
    else:
        root = min(max(-value / per_column, -_ONE), _FAR_COLUMN)
        # Truncating rounds down what is positive, and rounds up what is subtracted.
        if per_column > 0:
            start = max(int(root + _ONE), start)
        else:
            end = min(int(_FAR_COLUMN) - int(_FAR_COLUMN - root), end)
    return start, end


@inlined
def _set_sample(
    samples: _Samples,
    index: int,
    half_octave: np.int32,
    u: np.float32,
    v: np.float32,
    weight: np.float32,
) -> None:
    """Set a pixel's place (u, v) in tiles, both positive, and its weight from 0 to 256."""
    shift = np.int32(_LOG2_SIDE - (half_octave >> np.int32(1)))
    side = np.int32(np.int32(1) << shift)
    fine = _F(np.int32(side << np.int32(8)))
    # The first texel's centre is half a texel from the tile's corner.
    x, y = np.int32(u * fine - _F(128.0)), np.int32(v * fine - _F(128.0))
    mask, stride = np.int32(side - np.int32(1)), np.int32(side + np.int32(1))
    row = np.int32(np.int32(y >> np.int32(8)) & mask)
    column = np.int32(np.int32(x >> np.int32(8)) & mask)
    samples.half_octave[index] = half_octave
    samples.stride[index] = stride
    samples.place[index] = np.int32(np.int32(row * stride) + column)
    samples.x[index], samples.y[index] = x & _BYTE, y & _BYTE
    samples.weight[index] = np.int32(weight + _HALF)


@inlined
def _look_up(
    samples: _Samples, index: int, offset: np.uint32, texels: NDArray[np.uint32]
) -> np.uint64:
    """A sample's colour times its weight, from the half octave that begins at an offset."""
    place, stride = np.uint32(offset + samples.place[index]), samples.stride[index]
    color = blend_texels(texels, place, stride, samples.x[index], samples.y[index])
    # The picture's next rows take about the texture's next ones; by then these have come.
    prefetch(texels, np.uint32(place + _ROWS_AHEAD * stride))
    return color * np.uint64(samples.weight[index])


@inlined
def _add_wall(
    stretch: _Stretch,
    row: _Row,
    view: _View,
    face: NDArray[np.float32],
    texture: int,
    atlas: TextureAtlas,
    colors: NDArray[np.uint64],
    samples: _Samples,
) -> None:
    """Add a face to its stretch of a row."""
    edge = stretch.edge
    start, end = _columns_above(stretch, edge.value + _HALF, edge.per_column)
    per_right, light = face[_PER_RIGHT], face[_LIGHT] * _F(256.0)
    along_forward, along_right = face[_ALONG_FORWARD], face[_ALONG_RIGHT]
    tilt, sway = _SIN * face[_PER_FORWARD], _SIN * along_forward
    per_column, along_per_column = per_right * view.step, along_right * view.step
    inverse = row.forward * face[_PER_FORWARD] - per_column * view.center
    along = row.forward * along_forward - along_per_column * view.center
    u0, v0 = face[_ALONG], _TILES + view.top
    texels = view.step * _F(1 << LOG2_SIDE)
    for i in range(end - start):
        c = _F(np.int32(start)) + _F(np.int32(i))
        # Beyond the edge, a pixel that the wall half covers shows the edge's texel.
        t = _ONE / max(inverse + per_column * c, row.limit)
        # What the place in the texture gains per column and per row.
        direction = along + along_per_column * c
        q, w = per_right * t, tilt * t
        a, b = along_right - direction * q, row.up * q
        c1, c2 = sway - direction * w, _COS - row.up * w
        gain = t * texels
        half_octave = _half_octave(max(a * a + b * b, c1 * c1 + c2 * c2) * gain * gain)
        weight = light * _covered(c, edge) * _share(c, stretch)
        _set_sample(samples, i, half_octave, u0 + t * direction, v0 - t * row.up, weight)
    for i in range(np.uint32(max(end - start, 0))):
        offset = np.uint32(atlas.offsets[texture, samples.half_octave[i]])
        colors[np.uint32(start) + i] += _look_up(samples, i, offset, atlas.texels)


@inlined
def _half_octave(squared: np.float32) -> np.int32:
    """The half octave in which a pixel is about one texel, by its squared extent in the finest."""
    return min(max(floor_log2(squared * _SQRT_TWO), np.int32(0)), _COARSEST)


@inlined
def _add_floor(
    stretch: _Stretch,
    row: _Row,
    view: _View,
    is_room: NDArray[np.uint8],
    atlas: TextureAtlas,
    half_octaves: NDArray[np.int32],
    colors: NDArray[np.uint64],
    samples: _Samples,
) -> None:
    """Add the floor before a face to its stretch of a row."""
    edge = stretch.edge
    start, end = _columns_above(stretch, _HALF - edge.value, -edge.per_column)
    t = view.height / -row.up
    per_column = t * view.step
    u0 = view.x + t * row.forward * view.cos - per_column * view.sin * view.center
    v0 = view.y - t * row.forward * view.sin - per_column * view.cos * view.center
    u_per_column, v_per_column = per_column * view.sin, per_column * view.cos
    last_cell = _F(len(is_room)) - _F(1e-3)
    for i in range(end - start):
        c = _F(np.int32(start)) + _F(np.int32(i))
        # Where a pixel's centre lies behind the wall, it may lie outside of the maze.
        u = min(max(u0 + u_per_column * c, _F(0.0)), last_cell)
        v = min(max(v0 + v_per_column * c, _F(0.0)), last_cell)
        samples.cell_row[i], samples.cell_column[i] = np.int32(v), np.int32(u)
        weight = _F(_FLOOR_LIGHT) * (_ONE - _covered(c, edge)) * _share(c, stretch)
        _set_sample(samples, i, half_octaves[start + i], u, v, weight)
    for i in range(np.uint32(max(end - start, 0))):
        texture = CORRIDOR_FLOOR + is_room[samples.cell_row[i], samples.cell_column[i]]
        offset = np.uint32(atlas.offsets[texture, samples.half_octave[i]])
        colors[np.uint32(start) + i] += _look_up(samples, i, offset, atlas.texels)


@inlined
def _add_sky(
    stretch: _Stretch,
    sky: NDArray[np.uint64],
    colors: NDArray[np.uint64],
) -> None:
    """Add the sky above a face to its stretch of a row."""
    edge = stretch.edge
    start, end = _columns_above(stretch, _HALF - edge.value, -edge.per_column)
    for i in range(end - start):
        c = _F(np.int32(start)) + _F(np.int32(i))
        weight = _F(256.0) * (_ONE - _covered(c, edge)) * _share(c, stretch)
        colors[start + i] += sky[start + i] * np.uint64(np.uint32(np.int32(weight + _HALF)))


@bare_kernel
def _draw_sphere(
    view: _View,
    dx: np.float32,
    dy: np.float32,
    up: np.float32,
    color: NDArray[np.float32],
    num_faces: int,
    faces: NDArray[np.float32],
    row_slope: NDArray[np.float32],
    image: NDArray[np.uint8],
) -> None:
    """Draw a sphere whose centre is (dx, dy) on the grid and `up` from the camera."""
    side = image.shape[0]
    radius = _F(TARGET_RADIUS / CELL)
    sphere = _Sphere(
        forward=dx * view.cos - dy * view.sin,
        right=dx * view.sin + dy * view.cos,
        up=up,
        radius=radius,
    )
    if sphere.forward < -radius or _is_hidden(sphere, num_faces, faces):
        return
    # The part of the picture that it can lie in: the cone around it, widened.
    depth, lift = sphere.forward * _COS - up * _SIN, sphere.forward * _SIN + up * _COS
    first_row, last_row, first_column, last_column = 0, side, 0, side
    if depth > _F(1.1) * radius:
        extent = _F(1.35) * radius / (depth - radius) / view.step + _ONE
        middle_column = sphere.right / depth / view.step + view.center
        middle_row = -lift / depth / view.step + view.center
        first_row, last_row = _clipped(middle_row, extent, side)
        first_column, last_column = _clipped(middle_column, extent, side)
    for row in range(first_row, last_row):
        for column in range(first_column, last_column):
            right = (_F(column) - view.center) * view.step
            share = _sphere_share(view, sphere, right, row_slope[row], num_faces, faces)
            if share > 0:
                light = _sphere_light(sphere, right, row_slope[row])
                for k in range(3):
                    below = _F(image[row, column, k])
                    shaded = min(color[k] * light, _F(255.0))
                    image[row, column, k] = np.uint8(below + (shaded - below) * share + _HALF)


@inlined
def _clipped(middle: np.float32, extent: np.float32, side: int) -> tuple[int, int]:
    """Pixels [first, end) within `extent` of a middle and in the picture."""
    first = min(max(middle - extent, _F(0.0)), _F(side))
    end = min(max(middle + extent + _F(2.0), _F(0.0)), _F(side))
    return int(first), int(end)


@bare_kernel
def _is_hidden(sphere: _Sphere, num_faces: int, faces: NDArray[np.float32]) -> bool:
    """Whether a sphere certainly lies outside the view or behind walls."""
    reach = _F(1.1) * sphere.radius
    if sphere.forward < _F(1.2) * sphere.radius:
        return False
    low, high = (sphere.right - reach) / sphere.forward, (sphere.right + reach) / sphere.forward
    low, high = max(low, -_F(_WIDEST)), min(high, _F(_WIDEST))
    for j in range(num_faces):
        a = max(faces[j, _LEFT], low)
        b = min(faces[j + 1, _LEFT], high) if j < num_faces - 1 else high
        if a < b:
            per_forward, per_right = faces[j, _PER_FORWARD], faces[j, _PER_RIGHT]
            farthest = min(per_forward + per_right * a, per_forward + per_right * b)
            if farthest * (sphere.forward - reach) < _ONE:
                return False
    return True


@inlined
def _wall_inverse(
    forward: np.float32, right: np.float32, num_faces: int, faces: NDArray[np.float32]
) -> np.float32:
    """1 / t at which a ray meets its face."""
    slope = right / forward
    j = 0
    while j < num_faces - 1 and faces[j + 1, _LEFT] < slope:
        j += 1
    return forward * faces[j, _PER_FORWARD] + right * faces[j, _PER_RIGHT]


@inlined
def _sphere_share(
    view: _View,
    sphere: _Sphere,
    right: np.float32,
    slope: np.float32,
    num_faces: int,
    faces: NDArray[np.float32],
) -> np.float32:
    """The share of a pixel that shows the sphere: how many of its four places do."""
    forward, up = _COS + _SIN * slope, -_SIN + _COS * slope
    squared = forward * forward + right * right + up * up
    along = (sphere.forward * forward + sphere.right * right + sphere.up * up) / squared
    center = sphere.forward**2 + sphere.right**2 + sphere.up**2
    # How far from the centre the ray passes, and how wide the pixel is there.
    miss = math.sqrt(max(center - along * along * squared, _F(0.0)))
    pixel = along * view.step * math.sqrt(squared)
    if along <= 0 or miss > sphere.radius + pixel:
        return _F(0.0)
    if miss < sphere.radius - pixel:
        t = along - math.sqrt((sphere.radius**2 - miss**2) / squared)
        beyond = _wall_inverse(forward, right, num_faces, faces) * t - _ONE
        is_clear = view.height + t * up > pixel and abs(beyond) > _F(0.1) and t > 0
        if is_clear:
            return _ONE if beyond < 0 else _F(0.0)
    count = 0
    for k in range(4):
        r = right + _SUBPIXELS[k, 0] * view.step
        b = slope - _SUBPIXELS[k, 1] * view.step
        count += _shows_sphere(view, sphere, _COS + _SIN * b, r, -_SIN + _COS * b, num_faces, faces)
    return _F(0.25) * _F(count)


@bare_kernel
def _shows_sphere(
    view: _View,
    sphere: _Sphere,
    forward: np.float32,
    right: np.float32,
    up: np.float32,
    num_faces: int,
    faces: NDArray[np.float32],
) -> bool:
    """Whether a ray meets the sphere, above the floor and before a wall."""
    squared = forward * forward + right * right + up * up
    along = (sphere.forward * forward + sphere.right * right + sphere.up * up) / squared
    center = sphere.forward**2 + sphere.right**2 + sphere.up**2
    inside = along * along - (center - sphere.radius**2) / squared
    if inside <= 0:
        return False
    t = along - math.sqrt(inside)
    if t <= 0 or view.height + t * up < 0:
        return False
    return bool(_wall_inverse(forward, right, num_faces, faces) * t < _ONE)


@inlined
def _sphere_light(sphere: _Sphere, right: np.float32, slope: np.float32) -> np.float32:
    """The light where a pixel's ray meets the sphere, or comes nearest to it."""
    forward, up = _COS + _SIN * slope, -_SIN + _COS * slope
    squared = forward * forward + right * right + up * up
    along = (sphere.forward * forward + sphere.right * right + sphere.up * up) / squared
    center = sphere.forward**2 + sphere.right**2 + sphere.up**2
    inside = along * along - (center - sphere.radius**2) / squared
    t = along - math.sqrt(max(inside, _F(0.0)))
    toward_camera = (t * up - sphere.up) * _SIN - (t * forward - sphere.forward) * _COS
    return _F(AMBIENT) + _F(DIFFUSE) * max(toward_camera / sphere.radius, _F(0.0))
