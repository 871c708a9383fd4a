"""The grid Memory Maze: mazes, what is seen, rewards, and the perfect agent."""

from collections import deque

import numpy as np
import pytest

from mtxl_rl.envs.tasks.grid_memory_maze import (
    SIZES,
    GridMemoryMaze,
    GridMemoryMazeConfig,
    ShortestPaths,
)
from mtxl_rl.envs.tasks.walker import FORWARD, LEFT, RIGHT


def make(size: str = "9x9", *, num_envs: int = 4, seed: int = 0) -> GridMemoryMaze:
    env = GridMemoryMaze(GridMemoryMazeConfig(size=size), num_envs=num_envs, seed=seed)
    env.reset()
    return env


@pytest.mark.parametrize("size", SIZES)
def test_a_maze_holds_each_object_once_and_all_can_be_reached(size: str) -> None:
    env = make(size)
    for row in range(env.num_envs):
        world = env.world[row]
        cells = [np.flatnonzero(world == 2 + i).tolist() for i in range(env.size.num_objects)]
        assert cells == env.objects[row][:, None].tolist()
        assert world[env.cell[row]] == 0
        reached = cells_within_reach(env, row)
        assert set(np.flatnonzero(world != 1)) == reached


def cells_within_reach(env: GridMemoryMaze, row: int) -> set[int]:
    todo, seen = [int(env.cell[row])], {int(env.cell[row])}
    while todo:
        cell = todo.pop()
        for neighbour in (cell + env.ahead).tolist():
            if env.world[row, neighbour] != 1 and neighbour not in seen:
                seen.add(neighbour)
                todo.append(neighbour)
    return seen


def test_the_view_is_turned_so_that_ahead_is_up() -> None:
    env = make(num_envs=64)
    observations = env._observe()
    seen = observations[:, :100].reshape(64, 5, 5, 4)
    cell, heading = env.cell, env.heading
    assert set(heading.tolist()) == {0, 1, 2, 3}
    for row, column, forward, left in [(2, 2, 0, 0), (1, 2, 1, 0), (0, 2, 2, 0), (2, 1, 0, 1),
                                       (2, 4, 0, -2), (3, 2, -1, 0), (0, 0, 2, 2)]:  # fmt: skip
        there = cell + forward * env.ahead[heading] + left * env.ahead[(heading + 1) % 4]
        world = env.world[env.all_rows, there]
        np.testing.assert_array_equal(seen[:, row, column, 0], world == 1)
        np.testing.assert_array_equal(seen[:, row, column, 1:].argmax(axis=1)[world > 1],
                                      world[world > 1] - 2)  # fmt: skip
    np.testing.assert_array_equal(observations[:, 100:], np.eye(3)[env.prompt])


def test_walls_stop_and_turns_stay() -> None:
    env = make(num_envs=64)
    for action in np.random.default_rng(0).integers(4, size=200):
        cell, heading = env.cell.copy(), env.heading.copy()
        env.step(np.full(64, action))
        moved = env.cell != cell
        assert (env.world[env.all_rows, env.cell] != 1).all()
        if action == FORWARD:
            is_free = env.world[env.all_rows, cell + env.ahead[heading]] != 1
            np.testing.assert_array_equal(moved, is_free)
        else:
            assert not moved.any()
            turn = {LEFT: 1, RIGHT: -1}.get(int(action), 0)
            np.testing.assert_array_equal(env.heading, (heading + turn) % 4)


def test_only_the_prompted_object_pays_and_another_is_prompted_then() -> None:
    env = make(num_envs=32)
    oracle = ShortestPaths(env)
    num_wrong_touches = 0
    for _ in range(300):
        prompt, cell = env.prompt.copy(), env.cell.copy()
        rewards = env.step(oracle.actions())[1]
        entered = env.world[env.all_rows, env.cell].astype(int) - 2
        moved = env.cell != cell
        np.testing.assert_array_equal(rewards == 1, moved & (entered == prompt))
        np.testing.assert_array_equal(env.prompt != prompt, rewards == 1)
        num_wrong_touches += int((moved & (entered >= 0) & (entered != prompt)).sum())
    assert num_wrong_touches > 0


def test_the_perfect_agent_takes_the_fewest_steps() -> None:
    env = make(num_envs=12, seed=3)
    oracle = ShortestPaths(env)
    expected = [fewest_steps(env, row) for row in range(12)]
    taken = np.zeros(12, dtype=int)
    for step in range(1, 200):
        rewards = env.step(oracle.actions())[1]
        taken[(rewards == 1) & (taken == 0)] = step
    assert taken.tolist() == expected


def fewest_steps(env: GridMemoryMaze, row: int) -> int:
    """Breadth-first search over cells and headings."""
    first = (int(env.cell[row]), int(env.heading[row]))
    goal = env.objects[row, env.prompt[row]]
    steps, todo = {first: 0}, deque([first])
    while todo:
        cell, heading = todo.popleft()
        if cell == goal:
            return steps[cell, heading]
        ahead = int(cell + env.ahead[heading])
        after = [(cell, (heading + 1) % 4), (cell, (heading - 1) % 4), (ahead, heading)]
        for state in after:
            if env.world[row, state[0]] != 1 and state not in steps:
                steps[state] = steps[cell, heading] + 1
                todo.append(state)
    raise AssertionError("the object cannot be reached")
