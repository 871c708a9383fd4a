from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze import vector as vector_module
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.png import read_png, unfilter
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.textures import load_atlas
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

GOLDEN = Path(__file__).with_name("golden.npz")
Psnr = Callable[..., float]


def scattered(num_envs: int, **options: Any) -> MemoryMazeVectorEnv:  # noqa: ANN401
    """Mazes whose walkers stand anywhere."""
    config = MemoryMazeConfig(num_threads=1, **options)
    env = MemoryMazeVectorEnv(num_envs, config=config, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    for index, walls in enumerate(env.walls()):
        floor = np.argwhere(~walls)
        row, column = floor[rng.integers(len(floor))]
        half = (config.maze_size.grid - 1) / 2
        env._position[index, 0] = (column - half) * 2 + rng.uniform(-0.75, 0.75)
        env._position[index, 1] = (half - row) * 2 + rng.uniform(-0.75, 0.75)
        env._position[index, 3] = rng.uniform(-np.pi, np.pi)
    return env


@pytest.mark.parametrize("size", ["9x9", "15x15", "31x31"])
def test_both_renderers_draw_the_same_pictures(size: str, psnr: Psnr) -> None:
    env = scattered(24, size=size)
    slow = np.empty_like(env._images)
    fast = env.observe()
    env._cast(slow)
    inside = np.s_[2:-2, 2:-2]
    values = [psnr(a[inside], b[inside]) for a, b in zip(fast, slow, strict=True)]
    assert np.mean(values) > 44
    assert min(values) > 33


@pytest.mark.usefixtures("original_textures")
@pytest.mark.parametrize("variant", ["vis", "hd", "top", "oracle", "6cl"])
def test_every_variant_looks_like_the_original(variant: str, psnr: Psnr) -> None:
    options: dict[str, Any] = {
        "vis": {"good_visibility": True},
        "hd": {"camera_resolution": 256},
        "top": {"camera_resolution": 256, "top_camera": True},
        "oracle": {"show_path": True},
        "6cl": {"randomize_colors": True},
    }[variant]
    env = MemoryMazeVectorEnv(1, config=MemoryMazeConfig(num_threads=1, **options), seed=7)
    first, last = np.load(GOLDEN)[f"variant_{variant}"]
    picture, _ = env.reset()
    assert psnr(picture[0], first) > 41
    for _ in range(5):
        picture, *_ = env.step(np.array([1]))
    assert psnr(picture[0], last) > 36


def test_a_pose_can_be_drawn_without_going_there() -> None:
    env = scattered(3)
    before = env._images.copy()
    x, y, _, heading, _ = env.walkers()[2]
    env.observe()
    here = env._images[2].copy()
    state = env.get_state()
    np.testing.assert_array_equal(env.render_pose(2, x=x, y=y, heading=heading), here)
    assert (env.render_pose(2, x=x, y=y, heading=heading + 1.0) != here).any()
    np.testing.assert_array_equal(env._images[2], here)
    for key, value in env.get_state().items():
        np.testing.assert_array_equal(value, state[key])
    assert before.shape == env._images.shape


def test_the_border_has_the_current_targets_colour_darkened() -> None:
    env = MemoryMazeVectorEnv(6, config=MemoryMazeConfig(num_threads=1), seed=0)
    pictures, _ = env.reset()
    for picture, current in zip(pictures, env._current, strict=True):
        color = (np.array(vector_module._COLORS[current]) * 255 * 0.7).astype(np.uint8)
        for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
            assert (edge == color).all()


@pytest.mark.parametrize(("textures", "tolerance"), [("original", 2.5), ("procedural", 4.0)])
def test_a_plain_texture_keeps_its_colour_in_every_half_octave(
    textures: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    if textures == "original":
        request.getfixturevalue("original_textures")
    atlas = load_atlas(textures)
    # The coarsest level is nearly the texture's mean; all levels have that mean.
    for texture in range(10):
        means: list[NDArray[np.float64]] = []
        for half_octave in range(20):
            offset, side = atlas.offsets[texture, half_octave], 1 << (10 - half_octave // 2)
            texels = atlas.texels[offset : offset + (side + 1) ** 2]
            channels = [(texels >> np.uint32(8 * k) & np.uint32(255)).mean() for k in range(3)]
            means.append(np.array(channels))
        assert np.abs(np.array(means) - means[0]).max() < tolerance


@pytest.mark.parametrize("kind", range(5))
def test_png_filters_are_undone(kind: int) -> None:
    rng = np.random.default_rng(kind)
    pixels = rng.integers(0, 256, (6, 12), dtype=np.uint8)  # four RGB pixels a line
    lines = np.zeros((6, 13), np.uint8)
    lines[:, 0] = kind
    for y in range(6):
        for x in range(12):
            left = int(pixels[y, x - 3]) if x >= 3 else 0
            up = int(pixels[y - 1, x]) if y else 0
            corner = int(pixels[y - 1, x - 3]) if y and x >= 3 else 0
            paeth = min((left, up, corner), key=lambda p: abs(p - (left + up - corner)))
            guess = (0, left, up, (left + up) // 2, paeth)[kind]
            lines[y, x + 1] = (int(pixels[y, x]) - guess) % 256
    unfilter(lines, 3)
    np.testing.assert_array_equal(lines[:, 1:], pixels)


def test_pngs_are_read_as_a_decoder_reads_them(original_textures: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    for name in ("wall_blue_d", "wall_green_bright_d", "wall_green_d"):  # palette, RGB, RGBA
        path = original_textures / f"{name}.png"
        np.testing.assert_array_equal(read_png(path), imageio.imread(path, mode="RGBA")[..., :3])


def test_sizes_beyond_the_original_can_be_played_and_drawn() -> None:
    for size in ("17x17", "31x31"):
        env = MemoryMazeVectorEnv(2, config=MemoryMazeConfig(num_threads=1, size=size), seed=0)
        env.reset()
        pictures, rewards, *_ = env.step(np.array([1, 4]))
        assert pictures.std() > 10
        assert rewards.shape == (2,)
        assert env._targets.shape[1] == SIZES[size].num_targets == 6
