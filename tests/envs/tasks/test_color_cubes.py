"""Colour cubes: what is shown when, and that memory solves every level."""

import numpy as np
import pytest

from mtxl_rl.envs.tasks.color_cubes import LEVELS, TAKE, ColorCubes, ColorCubesConfig

Place = tuple[int, int]


def places(
    observation: np.ndarray, count: int, *, size: int
) -> tuple[list[Place | None], np.ndarray]:
    """The first places of an observation, None where nothing is shown, and the rest of it."""
    parts = observation[: count * 2 * size].reshape(count, 2, size)
    cubes = [
        (int(part[0].argmax()), int(part[1].argmax())) if part.any() else None for part in parts
    ]
    return cubes, observation[count * 2 * size :]


class Rememberer:
    """A perfect agent of one environment, which sees observations only."""

    def __init__(self, config: ColorCubesConfig) -> None:
        self.size, self.num_cubes = config.grid_size, config.num_cubes
        self.cells: list[Place] = []

    def act(self, observation: np.ndarray) -> int:
        """Correct the map by what is shown; walk to the wanted cube; take it."""
        (agent,), rest = places(observation, 1, size=self.size)
        target, rest = int(rest[: self.num_cubes].argmax()), rest[self.num_cubes :]
        coloured, rest = places(rest, self.num_cubes, size=self.size)
        hidden, _ = places(rest, len(rest) // (2 * self.size), size=self.size)
        if coloured[0]:
            self.cells = coloured
        elif hidden and hidden[0]:
            (new,) = set(hidden) - set(self.cells)
            self.cells = [cell if cell in hidden else new for cell in self.cells]
        assert agent is not None
        row, column = agent
        to_row, to_column = self.cells[target]
        if row != to_row:
            return 0 if to_row < row else 2
        if column != to_column:
            return 3 if to_column < column else 1
        return TAKE


def successes(config: ColorCubesConfig, *, forgets: bool, num_envs: int = 60) -> np.ndarray:
    """One episode in each environment; who forgets sees the map only while it is shown."""
    env = ColorCubes(config, num_envs=num_envs, seed=1)
    observations, _ = env.reset()
    agents = [Rememberer(config) for _ in range(num_envs)]
    rng = np.random.default_rng(0)
    success, ended = np.zeros(num_envs), np.zeros(num_envs, dtype=np.bool_)
    for _ in range(env.max_steps):
        is_shown = observations[:, 2 * env.size + env.num_cubes :].any(axis=1)
        actions = np.array([
            rng.integers(TAKE + 1) if forgets and not is_shown[index] else agent.act(observation)
            for index, (agent, observation) in enumerate(zip(agents, observations, strict=True))
        ])  # fmt: skip
        observations, _, terminated, truncated, infos = env.step(actions)
        ends = (terminated | truncated) & ~ended
        if ends.any():
            success[ends] = infos["success"][ends]
        ended |= ends
    assert ended.all()
    return success


@pytest.mark.parametrize("level", LEVELS)
def test_who_remembers_takes_every_cube(level: str) -> None:
    assert successes(ColorCubesConfig(level=level), forgets=False).mean() == 1


def test_who_forgets_takes_hardly_any() -> None:
    # It would be 14 of 48 cells for who never tried one twice; a random walk does.
    assert successes(ColorCubesConfig(), forgets=True, num_envs=400).mean() < 0.2


def test_another_cube_costs_1_and_ends_and_an_empty_cell_costs_a_step() -> None:
    env = ColorCubes(ColorCubesConfig(level="medium"), num_envs=50, seed=0)
    env.reset()
    env.agent[:25] = env.cubes[:25, 0]
    env.target[:25] = 1
    _, rewards, terminated, truncated, infos = env.step(np.full(50, TAKE))
    np.testing.assert_array_equal(rewards, np.repeat([-1, 0], 25))
    np.testing.assert_array_equal(terminated, np.repeat([True, False], 25))
    assert not truncated.any()
    assert not infos["success"].any()


@pytest.mark.parametrize(("level", "shows_colours"), [("medium", True), ("extreme", False)])
def test_a_tenth_of_the_steps_shows_a_teleport_of_another_cube(
    level: str, shows_colours: bool
) -> None:
    env = ColorCubes(ColorCubesConfig(level=level), num_envs=2000, seed=0)
    env.reset()
    before = env.cubes.copy()
    shown = env.step(np.zeros(2000, dtype=np.int64))[0][:, 2 * env.size + env.num_cubes :]
    moved = env.cubes != before
    np.testing.assert_array_equal(moved.any(axis=1), shown.any(axis=1))
    assert moved.any(axis=1).mean() == pytest.approx(0.1, abs=0.034)
    assert not moved[env.all_rows, env.target].any()
    assert moved.sum(axis=1).max() == 1
    marks = shown[moved.any(axis=1)].reshape(moved.any(axis=1).sum(), -1, 3 * 2 * env.size).sum(-1)
    assert (marks == ([6] if shows_colours else [0, 6])).all()


def test_teleports_land_on_free_cells_only() -> None:
    env = ColorCubes(ColorCubesConfig(level="medium", grid_size=3), num_envs=500, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(36):
        cubes, is_reset_row = env.cubes.copy(), env.is_reset_row.copy()
        env.step(rng.integers(4, size=500))
        assert (np.diff(np.sort(env.cubes, axis=1), axis=1) > 0).all()
        moved = (env.cubes != cubes) & ~is_reset_row[:, None]
        assert not (moved & (env.cubes == env.agent[:, None])).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "hard"}, "env.level=hard is unknown; choose one of medium, trivial, extreme"),
        ({"grid_size": 2}, "env.grid_size=2 must be at least 3, e.g. env.grid_size=7"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColorCubesConfig(**settings)  # type: ignore[arg-type]
