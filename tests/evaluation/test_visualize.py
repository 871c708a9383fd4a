"""Videos and timelines: what they show is what happened, and what they cannot show is said."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.agents.policy import Policy, PolicyConfig, PolicyInputs
from mtxl_rl.evaluation.visualize import _LABELS, _LINE, Film, _text
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


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets no file grow further, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
    bars = [frame[side + _LINE :, _LABELS:] for frame in (first, last)]
    panels = [(bar.min(axis=-1) > 150).all(axis=0) for bar in bars]
    assert panels[0].argmax() < panels[1].argmax()
    film.write_video(tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").stat().st_size > 1000


def test_a_frame_tells_its_step_and_reward_and_the_layer_of_each_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imageio = pytest.importorskip("imageio.v2")
    said: list[str] = []

    def heard(text: str, *, width: int) -> NDArray[np.uint8]:
        said.append(text)
        return _text(text, width=width)

    monkeypatch.setattr("mtxl_rl.evaluation.visualize._text", heard)
    film = filmed(IMAGES, num_layers=3, memory_layers=[2, 3])
    film.write_video(tmp_path / "film.gif")
    assert said[:4] == ["write 2", "write 3", "read 2", "read 3"]
    # The reward that arrives with step 5's observation is what step 4 earned.
    assert said[4:10] == [f"step {t}, reward {int(t == 4)}" for t in range(6)]
    assert said[-1] == "step 9"
    frames = [np.asarray(frame)[..., :3] for frame in imageio.mimread(tmp_path / "film.gif")]
    for n, text in enumerate([said[7], *said[:4]]):
        line = frames[3][252 + n * _LINE :][:_LINE, :_LABELS]
        assert (np.abs(line.astype(int) - _text(text, width=256)[:, :_LABELS]) < 40).mean() > 0.98


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [((1, 131, 37), 132, 160), ((37, 201, 3), 38, 202), ((301, 259, 1), 302, 260)],
)
@pytest.mark.parametrize(("kind", "num_bars"), [("transformer", 4), ("gru", 0)])
def test_frames_of_any_image_are_legal_for_an_encoder(
    tmp_path: Path, shape: tuple[int, ...], height: int, width: int, kind: str, num_bars: int
) -> None:
    ffmpeg = pytest.importorskip("imageio.plugins.ffmpeg").get_exe()
    path = tmp_path / "film.mp4"
    filmed(spaces.Box(0, 255, shape, np.uint8), steps=2, kind=kind).write_video(path)
    decode = [ffmpeg, "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    decoded = subprocess.run(decode, capture_output=True, check=True).stdout
    assert len(decoded) == 2 * (height + _LINE * (1 + num_bars)) * width


@pytest.mark.parametrize("name", ["film.mp4", "film.gif", "timeline.png"])
@pytest.mark.parametrize("steps", [5, 60])
def test_a_full_disk_ends_in_one_sentence_and_leaves_no_torn_file(
    tmp_path: Path, name: str, steps: int, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("imageio.v2")
    pytest.importorskip("matplotlib")
    film, path = filmed(IMAGES, steps=steps, max_steps=steps), tmp_path / name
    path.write_text("what was there before")
    write = film.write_timeline if name == "timeline.png" else film.write_video
    with largest_file(10_000), pytest.raises(OSError, match="cannot write") as caught:
        write(path)
    said = str(caught.value)
    assert str(path) in said
    assert "free space" in said
    assert "\n" not in said
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_text() == "what was there before"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("long_term", ["delta", "slots", "none"])
def test_a_timeline_is_drawn_for_every_memory(tmp_path: Path, long_term: str) -> None:
    pytest.importorskip("matplotlib")
    for suffix in ("png", "svg"):
        path = tmp_path / f"timeline.{suffix}"
        filmed(VECTORS, long_term=long_term).write_timeline(path)
        assert path.stat().st_size > 5_000


def test_a_timeline_says_how_its_rows_are_scaled() -> None:
    pytest.importorskip("matplotlib")
    film = filmed(VECTORS, num_layers=3, memory_layers=[2, 3])
    reward, write, read, *attention = film._draw().axes
    assert "relative to its own largest" in reward.get_title()
    assert "square roots" in reward.get_title()
    strips = film._strips()
    for axis, rows in ((write, strips["write"]), (read, strips["read"])):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["layer 2", "layer 3"]
        expected = [f"largest {row.max():.2g}" for row in rows.values()]
        assert [text.get_text() for text in axis.texts] == expected
    for axis, record in zip(attention, film.records, strict=True):
        weights = record["attention/window"][0].mean(dim=1)
        (said,) = axis.texts
        assert said.get_text() == f"largest {weights.max():.2g}"
        assert axis.images[0].get_array().max() == pytest.approx(weights.max().sqrt().item())


def test_the_strips_are_those_of_the_steps_seen() -> None:
    short, long = filmed(VECTORS, max_steps=6), filmed(VECTORS, max_steps=10)
    found = long._strips()
    for name, rows in short._strips().items():
        assert list(rows) == list(found[name]) == [1, 2]
        for layer, row in rows.items():
            assert found[name][layer].shape == (10,)
            assert np.allclose(found[name][layer][:6], row, rtol=1e-4)


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image observations"):
        filmed(VECTORS).write_video(tmp_path / "film.gif")
    with pytest.raises(ValueError, match=r"torso\.kind=gru"):
        filmed(VECTORS, kind="gru").write_timeline(tmp_path / "timeline.png")
