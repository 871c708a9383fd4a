"""The grid Memory Maze: mazes, what is seen, rewards, and the players that plan."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.curriculum import point_of_seed
from mtxl_rl.envs.registry import evaluation_env
from mtxl_rl.envs.tasks.grid_explorer import GridExplorer
from mtxl_rl.envs.tasks.grid_memory_maze import (
    TASK_SIZES,
    GridMemoryMaze,
    GridMemoryMazeConfig,
)
from mtxl_rl.envs.tasks.walker import FORWARD, LEFT, RIGHT


def make(
    size: str = "9x9",
    *,
    num_envs: int = 4,
    seed: int = 0,
    **options: Any,  # noqa: ANN401
) -> GridMemoryMaze:
    config = GridMemoryMazeConfig(size=size, **options)
    env = GridMemoryMaze(config, num_envs=num_envs, seed=seed)
    env.reset()
    return env


@pytest.mark.parametrize("size", TASK_SIZES)
def test_a_maze_holds_each_object_once_and_all_can_be_reached(size: str) -> None:
    env = make(size)
    for row in range(env.num_envs):
        world = env.world[row]
        cells = [np.flatnonzero(world == 2 + i).tolist() for i in range(env.num_objects)]
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
    oracle = GridExplorer(env, knows_maze=True)
    num_wrong_touches = 0
    for _ in range(300):
        prompt, cell = env.prompt.copy(), env.cell.copy()
        rewards = env.step(oracle.act())[1]
        entered = env.world[env.all_rows, env.cell].astype(int) - 2
        moved = env.cell != cell
        np.testing.assert_array_equal(rewards == 1, moved & (entered == prompt))
        np.testing.assert_array_equal(env.prompt != prompt, rewards == 1)
        num_wrong_touches += int((moved & (entered >= 0) & (entered != prompt)).sum())
    assert num_wrong_touches > 0


def test_the_oracle_takes_the_fewest_steps() -> None:
    env = make(num_envs=12, seed=3)
    oracle = GridExplorer(env, knows_maze=True)
    expected = [fewest_steps(env, row) for row in range(12)]
    taken = np.zeros(12, dtype=int)
    for step in range(1, 200):
        rewards = env.step(oracle.act())[1]
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


def test_the_explorer_reaches_objects_almost_as_fast_as_the_oracle(
    episode_returns: Callable[..., NDArray[np.float64]],
) -> None:
    oracle, explorer = (
        episode_returns(GridMemoryMazeConfig(), player, episodes=8, seed=1).mean()
        for player in ("oracle", "explorer")
    )
    assert 0.9 * oracle < explorer <= oracle


def test_the_episode_length_is_an_option() -> None:
    env = make(num_envs=2, episode_length=5)
    ends = [env.step(np.zeros(2, np.int64))[3].all() for _ in range(11)]
    assert np.flatnonzero(ends).tolist() == [4, 10]
    assert env.config.describe().horizon == 5
    with pytest.raises(ValueError, match=r"env\.episode_length=-1 must be at least 0"):
        GridMemoryMazeConfig(episode_length=-1)


def free_extents(env: GridMemoryMaze) -> set[int]:
    """Cells from the first to the last row or column with floor, of each maze."""
    extents = set()
    for world in env.world.reshape(env.num_envs, env.stride, env.stride):
        rows, columns = np.nonzero(world != 1)
        extents.add(int(max(np.ptp(rows), np.ptp(columns))) + 1)
    return extents


@pytest.mark.parametrize("small", ["5x5", "7x7", "9x9"])
def test_a_curriculum_plays_smaller_mazes_with_all_objects(small: str) -> None:
    env = make("13x13", num_envs=16, curriculum={small: 1.0})
    assert max(free_extents(env)) <= int(small.split("x")[0])
    assert env.is_practice.all()
    for row in range(env.num_envs):
        assert len(set(env.objects[row].tolist()) | {int(env.cell[row])}) == 6
        assert set(env.objects[row].tolist()) <= cells_within_reach(env, row)


def test_a_curriculum_fades_and_its_episodes_are_reported_as_practice() -> None:
    env = make("11x11", num_envs=64, curriculum={"7x7": 0.5}, curriculum_steps=40, episode_length=9)
    shares = []
    for _ in range(50):
        ends, infos = env.step(np.zeros(64, np.int64))[3:]
        assert ("is_practice" in infos) == ends.any()
        if ends.any():
            assert infos["_is_practice"].all()
            shares.append(infos["is_practice"].mean())
    # The mazes began after 0, 9, 18, 27 and 36 steps of the 40.
    expected = [0.5 * (1 - steps / 40) for steps in (0, 9, 18, 27, 36)]
    np.testing.assert_allclose(shares, expected, atol=0.2)
    assert shares[0] > shares[-1]


def test_a_state_is_continued_with_another_curriculum_or_none() -> None:
    env = make(num_envs=8, curriculum={"5x5": 0.5}, episode_length=4)
    other = make(num_envs=8, episode_length=4, seed=1)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(other.world, env.world)
    was_practice = other.is_practice.copy()
    assert 0 < was_practice.sum() < 8
    for _ in range(4):
        infos = other.step(np.zeros(8, np.int64))[4]
    np.testing.assert_array_equal(infos["is_practice"], was_practice)
    other.step(np.zeros(8, np.int64))
    assert not other.is_practice.any()


def test_a_state_is_continued_with_episodes_of_another_length() -> None:
    env, longer = make(num_envs=2, episode_length=4), make(num_envs=2, episode_length=6)
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    longer.set_state(env.get_state())
    ends = [bool(longer.step(np.zeros(2, np.int64))[3].all()) for _ in range(8)]
    # The saved episode ends as it would have, a reset follows, and the next one is longer.
    assert ends == [True, False, False, False, False, False, False, True]


def test_episodes_grow_during_a_curriculum_and_shorter_ones_are_practice() -> None:
    env = make(num_envs=64, episode_length=32, curriculum_episode_length=4, curriculum_steps=200)
    lengths, starts = [], np.zeros(64, np.int64)
    for step in range(1, 400):
        ends, infos = env.step(np.zeros(64, np.int64))[3:]
        for row in np.flatnonzero(ends):
            length = step - starts[row]
            lengths.append((starts[row], length))
            assert bool(infos["is_practice"][row]) == (length < 32)
            end = 200 + round(point_of_seed(int(row)) * 32)  # the phase of the row
            assert length == 32 if starts[row] >= end else length >= 4 or step == end
            starts[row] = step + 1  # the next step resets
    assert {length for start, length in lengths if start == 0} == {4}
    for start, length in lengths:
        longest = 4 * 8 ** min(1, start / 200)
        assert length <= round(longest)
    middle = {length for start, length in lengths if 80 < start < 120}
    assert min(middle) <= 5
    assert max(middle) >= 9


def test_a_state_of_another_task_or_version_is_refused() -> None:
    state = make(num_envs=2).get_state()
    with pytest.raises(ValueError, match="create this one with the saved settings"):
        make("11x11", num_envs=2).set_state(state)
    del state["is_seen"]
    with pytest.raises(ValueError, match="the saved task has no is_seen: another version"):
        make(num_envs=2).set_state(state)


def test_evaluations_have_no_curriculum() -> None:
    config = GridMemoryMazeConfig(curriculum={"5x5": 0.5}, curriculum_steps=3)
    assert config.for_evaluation() == GridMemoryMazeConfig()


def test_what_the_explorer_has_not_seen_does_not_change_what_it_does() -> None:
    env = make("13x13", num_envs=16, seed=2)
    player = GridExplorer(env)
    rng = np.random.default_rng(0)
    num_changed = 0
    for _ in range(120):
        player.look()
        costs = player.costs()
        world, objects = env.world.copy(), env.objects.copy()
        is_unseen = player.ages(np.broadcast_to(np.arange(world.shape[1]), world.shape)) < 0
        # Walls and free cells change places, and objects that it has not seen move there.
        env.world = np.where(is_unseen, rng.integers(2, size=world.shape), world).astype(np.int8)
        for row, index in zip(*np.nonzero(player.ages(objects) < 0), strict=True):
            env.objects[row, index] = rng.choice(np.flatnonzero(is_unseen[row]))
            num_changed += 1
        np.testing.assert_array_equal(player.costs(), costs)
        env.world, env.objects = world, objects
        env.step(costs.argmin(axis=1))
    assert num_changed > 0


def test_the_explorer_forgets_after_memory_steps() -> None:
    env = make(num_envs=32, seed=4)
    player, forgetful = GridExplorer(env), GridExplorer(env, memory_steps=5)
    differs = np.zeros(32, np.bool_)
    for _ in range(60):
        player.look()
        forgetful.look()
        ages = player.ages(np.broadcast_to(np.arange(env.world.shape[1]), env.world.shape))
        knows = (ages >= 0) & (ages <= 5)
        empty = GridExplorer(env)
        empty.seen_at = np.where(knows, player.seen_at, empty.seen_at)
        np.testing.assert_array_equal(forgetful.costs(), empty.costs())
        differs |= (forgetful.costs() != player.costs()).any(axis=1)
        env.step(player.act())
    assert differs.any()
    with pytest.raises(ValueError, match="memory_steps=-1 must be 0"):
        GridExplorer(env, memory_steps=-1)


@pytest.mark.parametrize("teacher", ["explorer", "oracle"])
def test_a_teacher_reports_what_the_player_would_do(teacher: str) -> None:
    env = make(num_envs=4, teacher=teacher)
    player = GridExplorer(env, knows_maze=teacher == "oracle")
    _, info = env.reset()
    for _ in range(50):
        player.look()
        np.testing.assert_array_equal(info["teacher_logits"], -player.costs())
        assert info["_teacher_logits"].all()
        info = env.step(info["teacher_logits"].argmax(axis=1))[-1]
    assert evaluation_env(env.config).teacher == ""
    with pytest.raises(ValueError, match=r"env\.teacher=nobody is unknown"):
        GridMemoryMazeConfig(teacher="nobody")


def test_a_saved_explorer_continues_with_what_it_has_seen() -> None:
    env, other = (make(num_envs=4, seed=seed, teacher="explorer") for seed in (0, 7))
    info = env._info()
    for _ in range(40):
        info = env.step(info["teacher_logits"].argmax(axis=1))[-1]
    other.set_state(env.get_state())
    actions = info["teacher_logits"].argmax(axis=1)
    for name in ("teacher_logits", "_teacher_logits"):
        np.testing.assert_array_equal(env.step(actions)[-1][name], other.step(actions)[-1][name])


def test_the_extra_observations_locate_things() -> None:
    env = make(num_envs=32, extra_observations=True)
    plain = make(num_envs=32)
    rng = np.random.default_rng(0)
    start: dict[str, NDArray[Any]] = env._observe()
    first = last = start["agent_pos"], start["agent_dir"]
    last_seen = np.full(env.objects.shape, -1)
    was_seen = start["view"][:, :100].reshape(32, 5, 5, 4)[..., 1:].any(axis=(1, 2))
    for step in range(200):
        actions = rng.choice(4, size=32, p=[0.1, 0.2, 0.2, 0.5])
        observation: dict[str, NDArray[Any]] = env.step(actions)[0]
        np.testing.assert_array_equal(observation["view"], plain.step(actions)[0])
        seen = observation["view"][:, :100].reshape(32, 5, 5, 4)
        is_seen = seen[..., 1:].any(axis=(1, 2))
        last_seen[is_seen] = step
        was_seen |= is_seen
        expected = np.where(last_seen < 0, -1, step - last_seen)
        np.testing.assert_array_equal(env.target_ages(), expected)
        for row, index in zip(*np.nonzero(is_seen), strict=True):
            right, ahead = observation["targets_vec"][row, index].astype(int)
            assert seen[row, 2 - ahead, 2 + right, 1 + index] == 1
        rows = np.arange(32)
        target = observation["targets_vec"][rows, env.prompt]
        np.testing.assert_array_equal(observation["target_vec"], target)
        places = observation["targets_pos"]
        np.testing.assert_array_equal(observation["target_pos"], places[rows, env.prompt])
        seen_places = np.where(was_seen[..., None], places, -1)
        np.testing.assert_array_equal(observation["seen_targets_pos"], seen_places)
        seen_vectors = np.where(was_seen[..., None], observation["targets_vec"], 0)
        np.testing.assert_array_equal(observation["seen_targets_vec"], seen_vectors)
        seen_target = seen_places[rows, env.prompt]
        np.testing.assert_array_equal(observation["seen_target_pos"], seen_target)
        to_target = places[rows, env.prompt] - observation["agent_pos"]
        forward = (to_target * observation["agent_dir"]).sum(1)
        np.testing.assert_array_equal(target[:, 1], forward)
        # The first and the last cell and direction, from where the agent is and how it turned.
        pose = observation["agent_pos"], observation["agent_dir"]
        ahead, right = pose[1], np.stack([pose[1][:, 1], -pose[1][:, 0]], axis=1)
        for name, (place, direction) in (("first", first), ("last", last)):
            for vector, expected_vector in (
                (observation[f"{name}_vec"], place - pose[0]),
                (observation[f"{name}_dir"], direction),
            ):
                np.testing.assert_array_equal(
                    vector[:, :1] * right + vector[:, 1:] * ahead, expected_vector
                )
        last = pose
        row, column = observation["agent_pos"].astype(int).T
        assert observation["maze_layout"][rows, row, column].all()
        ahead_cell = observation["agent_pos"] + observation["agent_dir"]
        is_floor = seen[:, 1, 2, 0] == 0
        row, column = ahead_cell.astype(int)[is_floor].T
        assert observation["maze_layout"][np.flatnonzero(is_floor), row, column].all()
