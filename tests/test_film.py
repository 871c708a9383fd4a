"""Videos and timelines: what they show is what happened, and what they cannot show is said."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mtxl_rl.film import Film
from mtxl_rl.policy import Policy, PolicyConfig, PolicyInputs
from mtxl_rl.torso import TorsoConfig

IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


def filmed(
    space: gymnasium.Space, *, steps: int = 12, max_steps: int = 10, **torso: object
) -> Film:
    """A film of a policy that plays alone, an episode starting at step 7."""
    torch.manual_seed(0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, **torso)
    policy = Policy(space, spaces.Discrete(3), torso=config, policy=PolicyConfig())
    film = Film(policy, space, max_steps=max_steps)
    space.seed(0)
    for t in range(steps):
        film.add(
            PolicyInputs(
                {"obs": torch.as_tensor(np.stack([space.sample(), space.sample()]))},
                torch.zeros(2, 1, dtype=torch.long),
                torch.full((2,), float(t == 5)),
                torch.full((2,), t in (0, 7)),
            )
        )
    return film


def test_a_video_has_a_frame_per_step_and_moves_a_cursor_over_the_memory(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    film = filmed(IMAGES)
    film.write_video(tmp_path / "new" / "film.gif")
    frames = imageio.mimread(tmp_path / "new" / "film.gif")
    assert len(frames) == 10
    first, last = np.asarray(frames[0])[..., :3], np.asarray(frames[-1])[..., :3]
    side = 36 * (256 // 36)
    assert first.shape[1] == side
    assert first.shape[0] > side
    # Above 150, since a palette has no pure white.
    panels = [(frame[side:].min(axis=-1) > 150).all(axis=0) for frame in (first, last)]
    assert panels[0].argmax() < panels[1].argmax()
    film.write_video(tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").stat().st_size > 1000


@pytest.mark.parametrize("long_term", ["delta", "slots", "none"])
def test_a_timeline_is_drawn_for_every_memory(tmp_path: Path, long_term: str) -> None:
    pytest.importorskip("matplotlib")
    for suffix in ("png", "svg"):
        path = tmp_path / f"timeline.{suffix}"
        filmed(VECTORS, long_term=long_term).write_timeline(path)
        assert path.stat().st_size > 5_000


def test_the_strips_are_those_of_the_steps_seen() -> None:
    short, long = filmed(VECTORS, max_steps=6), filmed(VECTORS, max_steps=10)
    found = {name: long._strips()[name] for name in ("write", "read")}
    for name, rows in short._strips().items():
        assert rows.shape == (2, 6)
        assert found[name].shape == (2, 10)
        assert rows.max(axis=1) == pytest.approx(1.0)
        scale = np.take_along_axis(found[name], rows.argmax(axis=1)[:, None], axis=1)
        assert np.allclose(found[name][:, :6], scale * rows, rtol=1e-4)  # of another maximum


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image observations"):
        filmed(VECTORS).write_video(tmp_path / "film.gif")
    with pytest.raises(ValueError, match=r"torso\.kind=gru"):
        filmed(VECTORS, kind="gru").write_timeline(tmp_path / "timeline.png")
