"""The endless T-maze: cues, corridors, rewards and ends."""

import numpy as np
import pytest

from mtxl_rl.envs.tasks.endless_tmaze import (
    CONFIGURATIONS,
    FORWARD,
    EndlessTMaze,
    EndlessTMazeConfig,
)


def make(num_envs: int = 300, **settings: int | str) -> EndlessTMaze:
    env = EndlessTMaze(EndlessTMazeConfig(**settings), num_envs=num_envs, seed=0)  # type: ignore[arg-type]
    env.reset()
    return env


def walk(env: EndlessTMaze, *, errors: float) -> dict[str, np.ndarray]:
    """One episode of an agent that knows the maze and errs at junctions."""
    rng = np.random.default_rng(0)
    totals = {name: np.zeros(env.num_envs) for name in ("return", "length", "success")}
    running = np.ones(env.num_envs, dtype=np.bool_)
    while running.any():
        turn = 1 + (env.cue ^ (rng.random(env.num_envs) < errors))
        _, rewards, terminated, truncated, infos = env.step(
            np.where(env.position == env.length, turn, FORWARD)
        )
        totals["return"] += rewards * running
        totals["length"] += running
        ended = running & (terminated | truncated)
        assert not truncated.any()
        if ended.any():
            totals["success"][ended] = infos["success"][ended]
        running &= ~ended
    return totals


def test_there_are_sixteen_configurations() -> None:
    assert len(set(CONFIGURATIONS)) == 16


@pytest.mark.parametrize(("regime", "num_corridors", "corridor_length"), CONFIGURATIONS)
def test_who_knows_the_cues_passes_all_corridors(
    regime: str, num_corridors: int, corridor_length: int
) -> None:
    env = make(regime=regime, num_corridors=num_corridors, corridor_length=corridor_length)
    totals = walk(env, errors=0)
    assert (totals["success"] == 1).all()
    steps = totals["length"] - num_corridors
    np.testing.assert_allclose(totals["return"], num_corridors - 0.01 * steps, atol=1e-5)
    if regime == "fixed":
        assert (steps == num_corridors * corridor_length).all()
    else:
        # Lengths from 1 to l with mean (l + 1) / 2; 5 standard deviations of the mean.
        deviation = corridor_length / np.sqrt(12 * num_corridors * 300)
        assert steps.mean() / num_corridors == pytest.approx(
            (corridor_length + 1) / 2, abs=5 * deviation
        )


def test_a_wrong_turn_costs_one_and_ends_the_episode() -> None:
    totals = walk(make(corridor_length=4, num_corridors=3), errors=1)
    assert not totals["success"].any()
    assert (totals["length"] == 5).all()
    np.testing.assert_allclose(totals["return"], -1.04, atol=1e-5)


def test_a_cue_is_shown_at_a_corridors_first_cell_only_and_each_is_new() -> None:
    env = make(num_envs=2000, corridor_length=3, num_corridors=2)
    observations = env._observe()
    first = env.cue.copy()
    for position in range(4):
        assert observations[:, 0] == pytest.approx(position / 3)
        shown = np.eye(2)[env.cue] if position == 0 else np.zeros((2000, 2))
        np.testing.assert_array_equal(observations[:, 1:], shown)
        turn = 1 + env.cue
        observations = env.step(turn if position == 3 else np.zeros(2000, dtype=int))[0]
    np.testing.assert_array_equal(observations[:, 1:], np.eye(2)[env.cue])
    assert (env.cue == first).mean() == pytest.approx(0.5, abs=0.06)


def test_waiting_costs_a_hundredth_a_step_and_the_time_runs_out() -> None:
    env = make(num_envs=1, corridor_length=1, num_corridors=1)
    steps = [env.step(np.array([1])) for _ in range(12)]
    assert sum(step[1][0] for step in steps) == pytest.approx(-0.12)
    assert [bool(step[3][0]) for step in steps] == [False] * 11 + [True]
    assert not any(step[2][0] for step in steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regime": "random"}, "env.regime=random is unknown; choose one of uniform, fixed"),
        ({"num_corridors": 0}, "env.num_corridors=0 must be at least 1, e.g. env.num_corridors=5"),
        ({"corridor_length": 0}, "env.corridor_length=0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
