"""The original as a yardstick, and what the tests and the maker of the golden file share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


@pytest.fixture
def yardstick() -> Iterator[Callable[..., Yardstick]]:
    pytest.importorskip("memory_maze", reason="memory-maze is not installed")
    made: list[Yardstick] = []

    def make(size: str, *, seed: int) -> Yardstick:
        made.append(Yardstick(size, seed=seed))
        return made[-1]

    yield make
    for one in made:
        one.env.close()


def psnr(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of two pictures in dB."""
    error = np.mean((ours.astype(np.float64) - theirs) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


@pytest.fixture(name="psnr")
def psnr_fixture() -> Callable[..., float]:
    return psnr
