"""The original as a yardstick, and what the tests and the maker of the golden file share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze import texture_files
from mtxl_rl.envs.memory_maze.text_maze import TextMazeSettings
from mtxl_rl.envs.memory_maze_original import MemoryMazeOriginal


class Yardstick:
    """The original package's environment, stepped by MuJoCo; tests hold it to the untouched one."""

    def __init__(self, size: str, *, seed: int) -> None:
        self.env = MemoryMazeOriginal(size=size, seed=seed)

    @property
    def task(self) -> Any:  # noqa: ANN401
        """The package's task object."""
        return self.env._simulation._task

    @property
    def model(self) -> Any:  # noqa: ANN401
        """MuJoCo's model of the current episode."""
        return self.env._simulation._model

    @property
    def data(self) -> Any:  # noqa: ANN401
        """MuJoCo's data of the current episode."""
        return self.env._simulation._data

    def position(self) -> NDArray[np.float64]:
        """x, y, height, heading and roll of the walker."""
        return self.data.qpos * [1, 1, 1, -1, 1]

    def velocity(self) -> NDArray[np.float64]:
        """Its derivative."""
        return self.data.qvel * [1, 1, 1, -1, 1]


class Labmaze:
    """The mazes of labmaze for the same settings and seed.

    `labmaze.RandomMaze` wraps this in text grids, which take half of the time.
    """

    def __init__(self, settings: TextMazeSettings, *, seed: int) -> None:
        from labmaze import defaults
        from labmaze.cc.python import _random_maze

        self._maze = _random_maze.RandomMaze(
            height=settings.side,
            width=settings.side,
            max_rooms=settings.max_rooms,
            room_min_size=settings.room_min_side,
            room_max_size=settings.room_max_side,
            retry_count=defaults.RETRY_COUNT,
            extra_connection_probability=settings.extra_connection_probability,
            max_variations=26,
            has_doors=defaults.HAS_DOORS,
            simplify=True,
            spawns_per_room=settings.spawns_per_room,
            spawn_token="P",
            objects_per_room=settings.objects_per_room,
            object_token="G",
            random_seed=seed,
        )
        self._is_new = True

    def next_maze(self) -> NDArray[np.uint8]:
        """The characters of the next maze's entity layer and variations layer, [2, side, side]."""
        if not self._is_new:
            self._maze.regenerate()
        self._is_new = False
        layers = self._maze.entity_layer, self._maze.variations_layer
        return np.stack([_characters(text) for text in layers])


def _characters(text: str) -> NDArray[np.uint8]:
    lines = np.frombuffer(text.encode(), np.uint8)
    return lines.reshape(-1, text.index("\n") + 1)[:, :-1]


@pytest.fixture
def labmaze_generator() -> type[Labmaze]:
    """`Labmaze`, where labmaze is installed."""
    pytest.importorskip("labmaze", reason="labmaze is not installed")
    return Labmaze


@pytest.fixture
def original_textures() -> Path:
    """The folder with the original's pictures, where this machine has them."""
    folder = texture_files.original_folder()
    if folder is None:
        pytest.skip("the original's textures are not on this machine")
    return folder


@pytest.fixture
def yardstick() -> Iterator[Callable[..., Yardstick]]:
    pytest.importorskip("memory_maze", reason="memory-maze is not installed")
    yardsticks: list[Yardstick] = []

    def make(size: str, *, seed: int) -> Yardstick:
        yardsticks.append(Yardstick(size, seed=seed))
        return yardsticks[-1]

    yield make
    for each in yardsticks:
        each.env.close()


def psnr(ours: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of two pictures in dB."""
    error = np.mean((ours.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


@pytest.fixture(name="psnr")
def psnr_fixture() -> Callable[..., float]:
    return psnr
