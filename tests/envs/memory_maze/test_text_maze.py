"""Mazes equal labmaze's cell by cell; `golden_mazes.npz` has some for machines without labmaze."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.layout import maze_settings
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.text_maze import (
    FLOOR,
    OBJECT,
    SPAWN,
    WALL,
    TextMaze,
    TextMazeGenerator,
    TextMazeSettings,
)

GOLDEN = np.load(Path(__file__).with_name("golden_mazes.npz"))
ORIGINAL_SIZES = ("9x9", "11x11", "13x13", "15x15")


def layers(maze: TextMaze) -> NDArray[np.uint8]:
    return np.stack([maze.cells, maze.variations()])


@pytest.mark.parametrize("size", GOLDEN.files)
def test_mazes_are_the_golden_ones(size: str) -> None:
    for seed, mazes in enumerate(GOLDEN[size]):
        generator = TextMazeGenerator(maze_settings(SIZES[size]), seed=seed)
        for golden in mazes:
            np.testing.assert_array_equal(layers(generator.next_maze()), golden)


@pytest.mark.original
@pytest.mark.parametrize("size", ORIGINAL_SIZES)
def test_ten_thousand_seeds_give_the_mazes_of_labmaze(size: str, labmaze_generator: type) -> None:
    settings = maze_settings(SIZES[size])
    for seed in range(10_000):
        expected = labmaze_generator(settings, seed=seed).next_maze()
        ours = layers(TextMazeGenerator(settings, seed=seed).next_maze())
        assert np.array_equal(ours, expected), f"seed {seed}"


@pytest.mark.parametrize("size", ORIGINAL_SIZES)
def test_a_long_sequence_is_that_of_labmaze(size: str, labmaze_generator: type) -> None:
    settings = maze_settings(SIZES[size])
    labmaze = labmaze_generator(settings, seed=2**31 - 1)
    ours = TextMazeGenerator(settings, seed=2**31 - 1)
    for index in range(1000):
        assert np.array_equal(layers(ours.next_maze()), labmaze.next_maze()), f"maze {index}"


@pytest.mark.parametrize("side", [5, 7, 9, 13, 21])
@pytest.mark.parametrize("extra_connection_probability", [0.0, 0.25, 1.0])
def test_other_settings_give_the_mazes_of_labmaze(
    side: int, extra_connection_probability: float, labmaze_generator: type
) -> None:
    rooms = [(max_rooms, longest) for max_rooms in (1, 4, 0) for longest in (3, 5, 9)]
    places = [(1, 1), (2, 3)]
    for (max_rooms, longest), (spawns, objects) in itertools.product(rooms, places):
        settings = TextMazeSettings(
            side=side,
            max_rooms=max_rooms,
            room_min_side=3,
            room_max_side=min(longest, side - 2),
            extra_connection_probability=extra_connection_probability,
            spawns_per_room=spawns,
            objects_per_room=objects,
        )
        for seed in range(10):
            labmaze = labmaze_generator(settings, seed=seed)
            ours = TextMazeGenerator(settings, seed=seed)
            for _ in range(2):
                np.testing.assert_array_equal(layers(ours.next_maze()), labmaze.next_maze())


def test_a_copied_state_gives_the_same_mazes() -> None:
    settings = maze_settings(SIZES["9x9"])
    saved, restored = (TextMazeGenerator(settings, seed=seed) for seed in (3, 4))
    for _ in range(10):
        saved.next_maze()
    restored.state = saved.state.copy()
    for _ in range(3):
        np.testing.assert_array_equal(layers(saved.next_maze()), layers(restored.next_maze()))


@pytest.mark.parametrize("size", SIZES)
def test_rooms_are_numbered_and_have_their_places(size: str) -> None:
    settings = maze_settings(SIZES[size])
    generator = TextMazeGenerator(settings, seed=0)
    for _ in range(5):
        cells, rooms = generator.next_maze()
        assert set(np.unique(cells)) <= {WALL, FLOOR, SPAWN, OBJECT}
        numbers = np.unique(rooms[rooms > 0])
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert len(numbers) <= settings.max_rooms
        for number in numbers:
            room = cells[rooms == number]
            assert (room == SPAWN).sum() == settings.spawns_per_room
            assert (room == OBJECT).sum() == settings.objects_per_room
