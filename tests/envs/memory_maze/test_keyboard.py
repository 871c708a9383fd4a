"""The window in which a person walks."""

import sys
from typing import Any

import pytest

from mtxl_rl import play
from mtxl_rl.envs.memory_maze.keyboard import pressed_action

ARGUMENTS = ["env=MemoryMaze", "env.textures=procedural", "player=keyboard"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("env.extra_observations=true", "player=keyboard shows pictures and takes the six actions"),
        ("env.size=9x9", r"player=keyboard needs pygame: pip install 'mtxl_rl[play]'"),
    ],
)
def test_what_it_cannot_show_and_a_missing_pygame_are_named(
    option: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SystemExit):
        play.main([*ARGUMENTS, option])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore")
def test_the_window_opens_walks_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    restart = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_r)
    rounds = iter([[], [restart], [pygame.event.Event(pygame.QUIT)]])
    titles: list[str] = []
    monkeypatch.setattr(pygame.event, "get", lambda: next(rounds))
    monkeypatch.setattr(pygame.display, "set_caption", titles.append)
    play.main(ARGUMENTS)
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

    keys: Any = Keys
    assert pressed_action(keys) == action
