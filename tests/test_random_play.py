"""Random play on the command line, and its actions."""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl import random_play
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.random_play import action_sampler, play_randomly


def test_a_corridor_is_guessed_in_half_of_the_episodes(capsys: pytest.CaptureFixture) -> None:
    random_play.main(["env=TMaze", "env.corridor_length=9", "episodes=400", "num_envs=64"])
    shown = capsys.readouterr().out
    assert "TMaze: mean +- 95 % confidence interval, by actions" in shown
    row = next(line for line in shown.splitlines() if line.startswith("│ random"))
    _, _, episodes, length, _, success, _ = (cell.strip() for cell in row.split("│"))
    assert (episodes, length) == ("400", "10.000 +- 0.000")
    mean, half = map(float, success.split(" +- "))
    assert abs(mean - 0.5) < 2 * half


def test_every_environment_plays_its_share_and_a_seed_repeats_the_episodes() -> None:
    config = compose_config(["env=EndlessTMaze", "env.num_corridors=3"]).env
    for num_envs, num_episodes in ((3, 7), (5, 2)):
        results = []
        for seed in (0, 0, 1):
            with closing(make_vector_env(config, num_envs=num_envs, seed=3)) as env:
                results.append(play_randomly(env, episodes=num_episodes, seed=seed))
        assert [len(episodes) for episodes in results] == [num_episodes] * 3
        assert results[0] == results[1] != results[2]
        assert set(results[0][0]) == {"return", "length", "success"}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-1, 2, shape=(2,), dtype=np.float32),
    ],
)
def test_actions_are_in_the_space_and_reach_all_of_it(space: gymnasium.Space) -> None:
    sample = action_sampler(space, num_envs=500, seed=0)
    actions = sample(np.zeros(500))
    assert all(space.contains(action) for action in actions)
    if isinstance(space, spaces.Box):
        assert actions.min() < -0.9
        assert actions.max() > 1.9
    else:
        assert len({tuple(np.atleast_1d(action)) for action in actions}) == (
            3 if isinstance(space, spaces.Discrete) else 6
        )


@pytest.mark.parametrize(
    ("space", "mask", "allowed"),
    [
        (spaces.Discrete(4), [1, 0, 0, 1], {(0,), (3,)}),
        (spaces.MultiDiscrete([2, 3]), [0, 1, 1, 0, 1], {(1, 0), (1, 2)}),
    ],
)
def test_a_mask_leaves_the_allowed_actions(
    space: gymnasium.Space, mask: list[int], allowed: set[tuple[int, ...]]
) -> None:
    sample = action_sampler(space, num_envs=1000, seed=0)
    actions = sample({"action_mask": np.tile(np.array(mask, np.int8), (1000, 1))})
    drawn = [tuple(np.atleast_1d(action)) for action in actions]
    assert set(drawn) == allowed
    assert all(abs(drawn.count(action) - 500) < 100 for action in allowed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "env= is missing; choose one of ActiveTMaze"),
        (["env=TMze"], "env=TMze is unknown; choose one of TMaze"),
        (["env=TMaze", "env.length=3"], "choose one of env.corridor_length, env.num_distractors"),
        (["env=TMaze", "episodes=0"], "episodes=0 must be 1 or more"),
        (["env=Gymnasium"], "env=Gymnasium needs env.id=..."),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        random_play.main(argv)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_has_the_presets_env_options(capsys: pytest.CaptureFixture) -> None:
    random_play.main(["env=TMaze-distractors", "--help"])
    assert "env.num_distractors=6" in capsys.readouterr().out
