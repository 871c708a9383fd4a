import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze.__main__ import main
from mtxl_rl.envs.memory_maze.play import pressed_action
from mtxl_rl.envs.memory_maze.policies import episode_returns
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig


def test_the_random_policy_prints_its_return(capsys: Any) -> None:  # noqa: ANN401
    main(["random", "--episodes", "2"])
    line = capsys.readouterr().out
    assert line.startswith("random, 9x9, 2 episodes of 1000 steps: return ")
    assert " +- " in line
    main(["random", "--episodes", "1"])
    assert capsys.readouterr().out.endswith(" (no interval)\n")


def test_a_policy_is_recorded(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    main(["oracle", "--gif", str(tmp_path / "maze.gif"), "--steps", "5"])
    video = imageio.imread(tmp_path / "maze.gif", index=None)
    assert video.shape[:3] == (6, 256, 256)
    assert (video[0] != video[-1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random", "--variant", "Foo"], "--variant=Foo is unknown; choose one of"),
        (["random", "--size", "8x8"], "env.size=8x8 is unknown; choose one of"),
        (["random", "--episodes", "0"], "num_episodes=0 must be at least 1"),
        (["play", "--variant", "ExtraObs"], "play shows pictures"),
        (["oracle", "--gif", "x.gif", "--steps", "0"], "--steps=0 must be at least 1"),
        (["random", "--gif", "maze.mp4"], "--gif=maze.mp4 must end in .gif"),
        (["random", "--gif", "missing/x.gif"], "make missing first, or choose another"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_a_video_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("imageio.v3")
    path = tmp_path / "maze.gif"
    path.mkdir()
    with pytest.raises(SystemExit, match=r"error: .*maze\.gif"):
        main(["random", "--gif", str(path), "--steps", "1"])


def test_a_missing_pygame_is_named(monkeypatch: Any) -> None:  # noqa: ANN401
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SystemExit, match=r"needs the package 'pygame': pip install 'mtxl_rl\[play"):
        main(["play"])


@pytest.mark.filterwarnings("ignore")
def test_the_window_opens_walks_and_closes(monkeypatch: Any) -> None:  # noqa: ANN401
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    restart = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_r)
    rounds = iter([[], [restart], [pygame.event.Event(pygame.QUIT)]])
    titles: list[str] = []
    monkeypatch.setattr(pygame.event, "get", lambda: next(rounds))
    monkeypatch.setattr(pygame.display, "set_caption", titles.append)
    main(["play"])
    assert len(titles) == 3
    assert all("0 spheres" in title for title in titles)


@pytest.mark.parametrize(
    ("held", "action"),
    [("", 0), ("U", 1), ("L", 2), ("R", 3), ("UL", 4), ("UR", 5), ("LR", 0), ("ULR", 1)],
)
def test_arrow_keys_are_the_six_actions(held: str, action: int) -> None:
    class Keys:
        K_UP, K_LEFT, K_RIGHT = "U", "L", "R"

        class key:  # noqa: N801
            @staticmethod
            def get_pressed() -> dict[str, bool]:
                return {name: name in held for name in "ULR"}

    assert pressed_action(Keys) == action


@pytest.mark.training
def test_the_oracle_finds_many_and_chance_finds_few() -> None:
    config = MemoryMazeConfig(num_threads=1, episode_length=200)
    oracle = episode_returns(config, policy="oracle", seed=0, num_episodes=16)
    chance = episode_returns(config, policy="random", seed=0, num_episodes=16)
    assert oracle.min() >= 1
    assert oracle.mean() > 5
    assert np.mean(chance) < 1


def test_the_explorer_prints_a_line_for_each_memory(capsys: Any) -> None:  # noqa: ANN401
    main(["explorer", "--episodes", "2", "--size", "5x5", "--memory-steps", "0", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "explorer,    0 steps of memory, 5x5, 2 episodes of 250 steps",
        "explorer,   64 steps of memory, 5x5, 2 episodes of 250 steps",
    ]
