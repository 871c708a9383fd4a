"""Policies that learn nothing, by name, and their returns.

`oracle.py` knows the maze, and `explorer.py` what it has seen of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.explorer import Explorer, measure_steps
from mtxl_rl.envs.memory_maze.kernels import announcing_compilation, kernel
from mtxl_rl.envs.memory_maze.oracle import Oracle
from mtxl_rl.envs.memory_maze.spec import CELL, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

Policy = Callable[[MemoryMazeVectorEnv], NDArray[Any]]
"""Actions [B] for the environments' current states."""

_FORWARD, _LEFT, _RIGHT, _FORWARD_LEFT, _FORWARD_RIGHT = 1, 2, 3, 4, 5
_TURN_ON_THE_SPOT, _TURN_WHILE_WALKING = 0.6, 0.13  # radians; a step turns by 0.32


def careful(env: MemoryMazeVectorEnv) -> Int64[np.ndarray, " B"]:
    """Walk from cell centre to cell centre and turn on the spot, to stay away from the walls."""
    walkers = env.walkers()
    return choose_steps(walkers[:, :2], walkers[:, 3], env.current_targets(), env.walls())


def random_policy(seed: int) -> Policy:
    """A policy that is uniform over the action space, with its own random stream."""
    rng = np.random.default_rng(seed)

    def act(env: MemoryMazeVectorEnv) -> NDArray[Any]:
        if env.config.discrete_actions:
            return rng.integers(env.single_action_space.n, size=env.num_envs)  # type: ignore[attr-defined]
        return rng.uniform(-1, 1, size=(env.num_envs, 2))

    return act


def explorer_policy(memory_steps: int | None = None) -> Policy:
    """Explorers that forget what they last saw more than `memory_steps` steps ago; None: nothing.

    They see every step at which they are asked for an action.
    """
    explorers: list[Explorer] = []

    def act(env: MemoryMazeVectorEnv) -> NDArray[Any]:
        if explorers:
            env.explore(explorers[0])
        else:
            grid = env.config.maze_size.grid
            explorers.append(Explorer(env.num_envs, grid=grid, memory_steps=memory_steps))
            with announcing_compilation("the explorer"):
                env.explore(explorers[0])
        return explorers[0].actions.copy()

    return act


POLICIES: dict[str, Callable[[int], Policy]] = {
    "oracle": lambda _: Oracle(),
    "explorer": lambda _: explorer_policy(),
    "random": random_policy,
}
"""Functions that make a policy from a seed, by name."""


def episode_returns(
    config: MemoryMazeConfig,
    *,
    policy: str,
    seed: int,
    num_episodes: int,
    memory_steps: int | None = None,
) -> Float64[np.ndarray, " episodes"]:
    """The returns of the first episodes of seed, seed + 1, ... under a policy of `POLICIES`.

    `memory_steps` is the explorer's.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes} must be at least 1.")
    if policy != "random" and not config.discrete_actions:
        raise ValueError(f"the {policy} takes discrete actions: discrete_actions=True.")
    if memory_steps is not None and policy != "explorer":
        raise ValueError(
            f"memory_steps={memory_steps} is for the explorer; the {policy} policy has no memory."
        )
    env = MemoryMazeVectorEnv(num_episodes, config=config, seed=seed)
    act = explorer_policy(memory_steps) if policy == "explorer" else POLICIES[policy](seed)
    env.reset()
    returns = np.zeros(num_episodes)
    for _ in range(config.steps_per_episode):
        returns += env.step(act(env))[1]
    env.close()
    return returns


def describe_returns(returns: Float64[np.ndarray, " episodes"]) -> str:
    """Return "return MEAN +- HALF A 95 % INTERVAL" of episodes."""
    interval = "(no interval)"  # One episode has no variance.
    if len(returns) > 1:
        interval = f"+- {1.96 * returns.std(ddof=1) / len(returns) ** 0.5:.2f}"
    return f"return {returns.mean():.2f} {interval}"


@kernel
def choose_steps(
    positions: Float64[np.ndarray, "B 2"],
    headings: Float64[np.ndarray, " B"],
    targets: Float64[np.ndarray, "B 2"],
    walls: NDArray[np.bool_],
) -> Int64[np.ndarray, " B"]:
    """Actions that go to targets on shortest paths, from cell centre to cell centre.

    Args:
        positions: Of the walkers, x and y in metres.
        headings: Radians, counter-clockwise from the x axis.
        targets: Where to go, x and y in metres.
        walls: [B, n, n], rows from the top.
    """
    count, n = walls.shape[0], walls.shape[1]
    distance = np.empty((n, n), np.int64)
    queue = np.empty((n * n, 2), np.int64)
    actions = np.empty(count, np.int64)
    for e in range(count):
        measure_steps(*_cell(targets[e], n), walls[e], distance, queue)
        x, y = targets[e, 0], targets[e, 1]
        row, column = _downhill(*_cell(positions[e], n), distance)
        if distance[row, column] > 0:
            x, y = (column - (n - 1) / 2) * CELL, ((n - 1) / 2 - row) * CELL
        bearing = np.arctan2(y - positions[e, 1], x - positions[e, 0]) - headings[e]
        actions[e] = _steer((bearing + np.pi) % (2 * np.pi) - np.pi)
    return actions


@kernel
def _downhill(row: int, column: int, distance: NDArray[np.int64]) -> tuple[int, int]:
    """The neighbour that is nearer to the goal, or the goal itself."""
    for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if distance[row + dr, column + dc] == distance[row, column] - 1 >= 0:
            return row + dr, column + dc
    return row, column


@kernel
def _cell(position: NDArray[np.float64], n: int) -> tuple[int, int]:
    """Row and column of a position (x, y) in metres."""
    return int(n / 2 - position[1] / CELL), int(n / 2 + position[0] / CELL)


@kernel
def _steer(angle: float) -> int:
    """The action that turns or walks toward a direction, in radians left of the heading."""
    if abs(angle) > _TURN_ON_THE_SPOT:
        return _LEFT if angle > 0 else _RIGHT
    if abs(angle) > _TURN_WHILE_WALKING:
        return _FORWARD_LEFT if angle > 0 else _FORWARD_RIGHT
    return _FORWARD
