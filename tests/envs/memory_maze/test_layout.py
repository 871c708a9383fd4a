import itertools

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze.layout import FREE, EpisodeLayout, EpisodeStream, ray_lengths
from mtxl_rl.envs.memory_maze.maze_sizes import MAX_NUM_TARGETS, SIZES


def stream(
    size: str = "9x9", *, seed: int = 0, colors: bool = False, quirks: bool = True
) -> EpisodeStream:
    return EpisodeStream(
        SIZES[size],
        grid=SIZES[size].grid,
        seed=seed,
        target_height=0.0,
        randomize_colors=colors,
        original_quirks=quirks,
    )


def same(a: EpisodeLayout, b: EpisodeLayout) -> bool:
    arrays = all(
        np.array_equal(x, y)
        for x, y in [*zip(a.maze, b.maze, strict=True), *zip(a, b, strict=True)]
        if isinstance(x, np.ndarray)
    )
    return arrays and (a.current, a.spawn, a.heading) == (b.current, b.spawn, b.heading)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_of_odd_sides_cover_each_wall_cell_once_and_keep_to_their_block(size: str) -> None:
    maze = stream(size).next_episode().maze
    covered = np.zeros(maze.wall_block.shape, int)
    for index, (top, left, bottom, right) in enumerate(maze.boxes.astype(int)):
        inside = np.s_[top:bottom, left:right]
        covered[inside] += 1
        assert (bottom - top) % 2 == (right - left) % 2 == 1
        assert len(np.unique(maze.wall_block[inside])) == 1
        assert (maze.box_of_cell[inside] == index).all()
    np.testing.assert_array_equal(covered, maze.wall_block != FREE)
    np.testing.assert_array_equal(maze.box_of_cell < 0, maze.wall_block == FREE)


@pytest.mark.parametrize("size", SIZES)
def test_all_floor_is_one_piece_and_holds_the_spheres_and_the_walker(size: str) -> None:
    episode = stream(size).next_episode()
    free = episode.maze.wall_block == FREE
    reached = np.zeros_like(free)
    todo = [tuple(np.argwhere(free)[0])]
    while todo:
        row, column = todo.pop()
        if free[row, column] and not reached[row, column]:
            reached[row, column] = True
            todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    np.testing.assert_array_equal(reached, free)
    grid = SIZES[size].grid
    for x, y in [*episode.targets, episode.spawn]:
        assert free[round((grid - 1) / 2 - y / 2), round(x / 2 + (grid - 1) / 2)]
    assert len(np.unique(episode.targets, axis=0)) == SIZES[size].num_targets


def test_the_same_seed_gives_the_same_episodes_and_another_one_others() -> None:
    a, b, c = stream(seed=5), stream(seed=5), stream(seed=6)
    for _ in range(3):
        episode = a.next_episode()
        assert same(episode, b.next_episode())
        assert not same(episode, c.next_episode())


def test_a_restored_stream_continues_as_the_saved_one() -> None:
    a, b = stream(seed=5, colors=True), stream(seed=99, colors=True)
    a.next_episode()
    a.draw_target(0)
    b.set_state(a.get_state())
    for _ in range(3):
        assert same(a.next_episode(), b.next_episode())
        assert a.draw_target(1) == b.draw_target(1)


def test_a_new_target_is_never_one_that_is_touched() -> None:
    mazes = stream("15x15")
    mazes.next_episode()
    drawn = {mazes.draw_target(0b010101) for _ in range(100)}
    assert drawn == {1, 3, 5}


def test_colours_are_fixed_unless_they_are_drawn() -> None:
    fixed, drawn = stream(), stream(colors=True)
    assert all(fixed.next_episode().colors.tolist() == [0, 1, 2] for _ in range(5))
    colors = [tuple(drawn.next_episode().colors) for _ in range(30)]
    assert set(itertools.chain(*colors)) == set(range(MAX_NUM_TARGETS))


def test_without_the_quirks_no_sphere_counts_as_touched_at_the_start() -> None:
    touched = []
    for seed in range(12):
        with_quirks, without = stream(seed=seed), stream(seed=seed, quirks=False)
        for _ in range(6):
            a, b = with_quirks.next_episode(), without.next_episode()
            at_origin = ~a.targets.any(axis=1)
            assert a.touched_at_start == sum(1 << k for k in np.flatnonzero(at_origin))
            assert b.touched_at_start == 0
            touched.append(a.touched_at_start)
    assert any(touched)


def test_rays_reach_to_walls_and_spheres() -> None:
    blocks = np.zeros((5, 5), np.uint8)
    blocks[1:-1, 1:-1] = FREE  # a room of 6 m by 6 m around the origin
    angles = np.array([0.0, np.pi / 2, np.pi, np.pi / 4])
    lengths = ray_lengths(1.0, 0.0, angles, blocks, np.array([[-2.0, 0.0, 0.1, 0.5]]))
    np.testing.assert_allclose(lengths, [2.0, 3.0, 2.5, 2 * np.sqrt(2)])


def test_a_ray_from_inside_a_sphere_reaches_to_its_far_side() -> None:
    blocks = np.zeros((5, 5), np.uint8)
    blocks[1:-1, 1:-1] = FREE
    lengths = ray_lengths(0.2, 0.0, np.array([0.0]), blocks, np.array([[0.0, 0.0, 0.1, 0.5]]))
    np.testing.assert_allclose(lengths, [0.3])
