"""Videos of recordings: their frames, and an encoder that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.video import _frames, write_video

pytest.importorskip("matplotlib")

Record = Callable[..., Recording]
IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.training
def test_a_video_has_a_frame_per_step(recorded: Record, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    recording = recorded(IMAGES)
    write_video(recording, tmp_path / "new" / "agent.gif")
    frames = imageio.mimread(tmp_path / "new" / "agent.gif")
    assert [frame.shape for frame in frames] == [(480, 960, 3)] * 10
    assert len({frame.tobytes() for frame in frames}) == 10
    write_video(recording, tmp_path / "agent.mp4")  # It counts its frames.
    assert (tmp_path / "agent.mp4").stat().st_size > 10_000


@pytest.mark.parametrize(
    "space",
    [
        VECTORS,
        spaces.Discrete(3),
        spaces.Box(0, 255, (1, 131, 37), np.uint8),
        spaces.Box(0, 255, (37, 201, 4), np.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["transformer", "gru"])
@pytest.mark.training
def test_every_observation_and_torso_has_a_video(
    recorded: Record, space: gymnasium.Space, kind: str
) -> None:
    frames = list(_frames(recorded(space, steps=2, kind=kind)))
    assert [frame.shape for frame in frames] == [(480, 960, 3)] * 2
    assert (frames[0] != frames[1]).any()


def test_an_encoder_that_fails_leaves_no_torn_video(
    recorded: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imageio = pytest.importorskip("imageio.v2")
    get_writer = imageio.get_writer

    def torn(path: Path, **options: object) -> Any:  # noqa: ANN401
        writer = get_writer(path, **options)
        close = writer.close

        def close_and_cut() -> None:
            close()
            path.write_bytes(path.read_bytes()[:1000])

        writer.close = close_and_cut
        return writer

    monkeypatch.setattr(imageio, "get_writer", torn)
    with pytest.raises(OSError, match="the video encoder did not finish"):
        write_video(recorded(IMAGES, steps=2), tmp_path / "agent.mp4")
    assert list(tmp_path.iterdir()) == []
