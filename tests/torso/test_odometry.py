"""The odometry: movements are added up as rigid motions, and start anew with each episode."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.odometry import Odometry, add_up


def ways_back(num_envs: int, num_steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """The ways back that Memory Maze reports for random walks, [B, T, 2] each, and `is_first`."""
    config = MemoryMazeConfig(extra_observations=True, seen_observations=True, episode_length=60)
    env = MemoryMazeVectorEnv(num_envs, config=config, seed=0)
    rng, rows, starts = np.random.default_rng(0), [], []
    observation, _ = env.reset()
    is_first, ended = np.ones(num_envs, dtype=bool), np.zeros(num_envs, dtype=bool)
    for _ in range(num_steps):
        names = ("last_vec", "last_dir", "first_vec", "first_dir")
        rows.append({name: torch.as_tensor(observation[name]).double() for name in names})
        starts.append(torch.as_tensor(is_first))
        is_reset_row = ended
        observation, _, terminated, truncated, _ = env.step(rng.choice([1, 1, 2, 3], size=num_envs))
        is_first, ended = is_reset_row, terminated | truncated
    leaves = {name: torch.stack([row[name] for row in rows], dim=1) for name in names}
    return leaves, torch.stack(starts, dim=1)


def test_exact_movements_add_up_to_the_way_back_to_the_start() -> None:
    leaves, is_first = ways_back(4, 150)
    right, ahead = leaves["last_dir"].unbind(-1)
    movement = torch.cat([leaves["last_vec"], torch.atan2(right, ahead)[..., None]], dim=-1)
    pose = add_up(movement, torch.zeros(4, 3).double(), is_first)
    x, y, heading = pose.unbind(-1)
    sin, cos = heading.sin(), heading.cos()
    # The start, in the axes of the agent: the vector to it, and its direction ahead.
    back = torch.stack([-x * cos - y * sin, x * sin - y * cos], dim=-1)
    torch.testing.assert_close(back, leaves["first_vec"], rtol=0, atol=1e-5)
    direction = torch.stack([sin, cos], dim=-1)
    torch.testing.assert_close(direction, leaves["first_dir"], rtol=0, atol=1e-5)
    assert float(leaves["first_vec"].norm(dim=-1).max()) > 2


def test_sums_over_calls_equal_one_sum() -> None:
    torch.manual_seed(0)
    movement, is_first = torch.randn(3, 40, 3).double(), torch.rand(3, 40) < 0.1
    movement = movement.masked_fill(is_first[..., None], 0)
    whole = add_up(movement, torch.zeros(3, 3).double(), is_first)
    pose, parts = torch.zeros(3, 3).double(), []
    for begin, end in ((0, 1), (1, 17), (17, 40)):
        steps = slice(begin, end)
        parts.append(add_up(movement[:, steps], pose, is_first[:, steps]))
        pose = parts[-1][:, -1]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_the_movement_of_a_first_step_is_zero() -> None:
    odometry = Odometry(8)
    x, carried = torch.randn(2, 3, 8), torch.randn(2, odometry.num_carried)
    is_first = torch.tensor([[True, False, False], [False, True, False]])
    movement = odometry.movements(x, carried, is_first)
    assert not movement[is_first].any()
    assert movement[~is_first].all()


def test_movements_need_an_odometry() -> None:
    torso = build_torso(TorsoConfig(width=8, num_heads=2))
    state, is_first = torso.initial_state(1), torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"set torso\.odometry=true"):
        torso.movements(torch.zeros(1, 1, 8), state, is_first)  # type: ignore[union-attr]


def test_a_baseline_refuses_it() -> None:
    with pytest.raises(ValueError, match=r"torso\.odometry=True has no effect .*kind=gru"):
        TorsoConfig(kind="gru", odometry=True)


def test_movements_that_are_learned_alone_add_up_to_the_pose() -> None:
    """Each step shows its movement."""
    torch.manual_seed(0)
    odometry = Odometry(8)
    optimizer = torch.optim.Adam(odometry.parameters(), lr=3e-3)
    carried = torch.zeros(64, odometry.num_carried)

    def walk() -> tuple[Tensor, Tensor, Tensor]:
        movement = 0.2 * torch.randn(64, 32, 3)
        is_first = torch.zeros(64, 32, dtype=torch.bool)
        is_first[:, 0] = True
        movement[:, 0] = 0
        return functional.pad(movement, (0, 5)), movement, is_first

    for _ in range(400):
        x, movement, is_first = walk()
        loss = (odometry.movements(x, carried, is_first) - movement).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, movement, is_first = walk()
    with torch.no_grad():
        estimated = add_up(odometry.movements(x, carried, is_first), carried[:, 8:], is_first)
    true = add_up(movement, carried[:, 8:], is_first)
    error, size = (estimated - true)[:, -1, :2].norm(dim=-1), true[:, -1, :2].norm(dim=-1)
    assert float(error.mean()) < 0.3 * float(size.mean())
