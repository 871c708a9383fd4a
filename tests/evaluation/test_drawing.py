"""What videos and timelines share: panels, missing packages, full disks."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.evaluation.drawing import memory_panels, require_drawing
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import write_timeline
from mtxl_rl.evaluation.video import write_video

pytest.importorskip("matplotlib")

Record = Callable[..., Recording]
IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


def test_the_panels_are_those_of_the_steps_recorded(recorded: Record) -> None:
    short, long = (memory_panels(recorded(VECTORS, max_steps=steps)) for steps in (6, 10))
    assert len(short) == len(long) == 2
    for a, b in zip(short, long, strict=True):
        assert list(a.layers) == list(b.layers) == [1, 2]
        for layer, values in a.layers.items():
            assert b.layers[layer].shape == (10,)
            assert np.allclose(b.layers[layer][:6], values, rtol=1e-4)


def test_slots_show_the_attention_on_them(recorded: Record) -> None:
    (slots,) = memory_panels(recorded(VECTORS, long_term="slots"))
    for weights in slots.layers.values():
        assert np.allclose(weights[:4], 0, atol=1e-6)  # Nothing is written before step 4.
        assert weights[4:7].min() > 0


@pytest.mark.parametrize("name", ["agent.mp4", "agent.gif", "memory.png"])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(
    recorded: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("imageio.v2")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recording, path = recorded(IMAGES, steps=2), tmp_path / name
    path.write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    write = write_timeline if name == "memory.png" else write_video
    with pytest.raises(OSError, match=f"cannot write {path}: No space.*; free space") as caught:
        write(recording, path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("option", "missing"), [("video", "imageio"), ("timeline", "matplotlib")])
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, option: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # As if it were not installed.
    with pytest.raises(ImportError, match=rf"{option}= needs {missing}: pip install"):
        require_drawing(option)
