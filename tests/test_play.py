"""Players on the command line, and their actions."""

from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl import play
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.play import action_sampler, make_player, play_episodes


def test_a_corridor_is_guessed_in_half_of_the_episodes(capsys: pytest.CaptureFixture) -> None:
    play.main(["env=TMaze", "env.corridor_length=9", "episodes=400", "num_envs=64"])
    shown = capsys.readouterr().out
    assert "TMaze: mean +- 95 % confidence interval, by player" in shown
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
                player = make_player(env, "random", seed=seed)
                results.append(play_episodes(env, player, episodes=num_episodes, seed=3))
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
        (["env=TMaze", "episode=3"], "option 'episode' is unknown; did you mean episodes?"),
        (["env=Gymnasium"], "env=Gymnasium needs env.id=..."),
        (["env=TMaze", "player=oracle"], "player=oracle does not play env=TMaze; choose one of ra"),
        (
            ["env=GridMemoryMaze", "player=exploer"],
            "does not play env=GridMemoryMaze; choose one of explorer, ra",
        ),
        (["env=TMaze", "player=random,oracle"], "has several values; give one, or add -m"),
        (["env=TMaze", "memory_steps=8"], "is for player=explorer, not player=random"),
        (["env=GridMemoryMaze", "player=explorer", "memory_steps=-4"], "memory_steps=-4 must be 0"),
        (["env=TMaze", "video=a.avi"], "video=a.avi must end in .mp4 or .gif"),
        (["env=MemoryMaze", "player=keyboard", "video=a.gif"], "player=keyboard writes no video"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        play.main(argv)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_has_the_presets_env_options(capsys: pytest.CaptureFixture) -> None:
    play.main(["env=TMaze-distractors", "--help"])
    assert "env.num_distractors=6" in capsys.readouterr().out


def rows(shown: str) -> list[str]:
    """The first column of the table that a command printed."""
    return [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]


def test_each_memory_of_the_explorer_has_a_row(capsys: pytest.CaptureFixture) -> None:
    argv = ["env=GridMemoryMaze", "env.episode_length=20", "episodes=2", "num_envs=2"]
    play.main([*argv, "player=explorer", "memory_steps=0,4"])
    shown = capsys.readouterr().out
    memories = ["explorer", "explorer, 0 steps of memory", "explorer, 4 steps of memory"]
    assert rows(shown) == memories
    play.main([*argv, "player=oracle", "episodes=1"])
    shown = capsys.readouterr().out
    assert rows(shown) == ["oracle"]
    assert "(no interval)" in shown


def test_an_interruption_shows_the_players_that_were_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    finished = iter([[{"return": 1.0, "length": 2.0}]])

    def play_once(*_: object, **__: object) -> list[dict[str, float]]:
        try:
            return next(finished)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(play, "play_episodes", play_once)
    with pytest.raises(SystemExit) as stop:
        play.main(["env=GridMemoryMaze", "player=explorer", "memory_steps=4"])
    assert stop.value.code == 130
    shown = capsys.readouterr()
    assert rows(shown.out) == ["explorer"]
    assert shown.err == "stopped\n"


def test_a_recording_has_the_first_environments_steps() -> None:
    config = compose_config(["env=TMaze", "env.corridor_length=3"]).env
    with closing(make_vector_env(config, num_envs=2, seed=0)) as env:
        recording = Recording(env.single_observation_space, max_steps=10)
        player = make_player(env, "random")
        episodes = play_episodes(env, player, episodes=2, seed=0, recording=recording)
    assert [bool(step.is_first) for step in recording.inputs] == [True, *[False] * 4]
    assert recording.rewards()[:-1].sum() == episodes[0]["return"]
    assert list(recording.pictures()) == ["the task"]
    assert (recording.title, recording.diagnostics) == ("", [])


def test_a_video_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    imageio = pytest.importorskip("imageio.v2")
    path = tmp_path / "new" / "maze.gif"
    play.main(
        ["env=TMaze", "env.corridor_length=3", "episodes=3", "num_envs=1", "video_steps=4",
         f"video={path}"]
    )  # fmt: skip
    assert capsys.readouterr().out.endswith(f"video: {path}\n")
    assert len(imageio.mimread(path)) == 4
