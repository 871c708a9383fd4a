"""Memory timelines: what they show, by kind of memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.evaluation.drawing import try_write
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import _draw_timeline, write_timeline

pytest.importorskip("matplotlib")

Record = Callable[..., Recording]
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


def titles(axes: Any) -> list[str]:  # noqa: ANN401
    return [axis.get_title(loc="left") for axis in axes if axis.get_title(loc="left")]


@pytest.mark.parametrize("long_term", ["delta", "slots", "none"])
@pytest.mark.parametrize("name", ["memory.png", "memory.svg"])
@pytest.mark.training
def test_a_timeline_is_drawn_for_every_memory(
    recorded: Record, tmp_path: Path, long_term: str, name: str
) -> None:
    write_timeline(recorded(VECTORS, long_term=long_term), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5_000


def test_a_timeline_names_the_task_the_layers_and_the_scales(recorded: Record) -> None:
    recording = recorded(VECTORS, num_layers=3, memory_layers=[2, 3])
    figure = _draw_timeline(recording)
    assert figure.get_suptitle().startswith("TMaze: transformer with delta memory")
    assert titles(figure.axes) == [
        "Observation",
        "Reward",
        "Action",
        "Write strength, mean over heads",
        "Read, as a change relative to the stream",
        *(
            f"Retrieved, layer {n}: an arc from the write (red) that a read returns most of; "
            "colour: its share; width: the effect"
            for n in (2, 3)
        ),
        *(f"Attention weight on the window, layer {n}, mean over heads" for n in (1, 2, 3)),
    ]
    write, read, _, _, *attention = figure.axes[3:10]
    for axis in (write, read):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["layer 2", "layer 3"]
    assert write.images[0].get_clim() == (0, 1)
    for axis, record in zip(attention, recording.diagnostics, strict=True):
        weights = record["attention/window"][0].mean(dim=1).T.numpy()
        assert axis.images[0].get_clim() == (1e-3, 1)
        assert np.allclose(axis.images[0].get_array().filled(0), weights)


def test_a_timeline_has_the_chosen_panels(recorded: Record, tmp_path: Path) -> None:
    figure = _draw_timeline(recorded(VECTORS), ["attention", "observation"])
    assert titles(figure.axes) == [
        "Observation",
        *(f"Attention weight on the window, layer {n}, mean over heads" for n in (1, 2)),
    ]
    recording = recorded(spaces.Box(0, 255, (16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"nothing to plot of timeline_panels=\['observation'\]"):
        write_timeline(recording, tmp_path / "timeline.png", ["observation"])


def test_a_baseline_has_no_timeline(
    recorded: Record, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recording = recorded(VECTORS, kind="gru")
    assert not recording.has_diagnostics
    with pytest.raises(ValueError, match="a torso of kind gru does not have; leave it out"):
        write_timeline(recording, tmp_path / "timeline.png")
    assert not try_write(partial(write_timeline, recording), tmp_path / "timeline.png")
    assert "timeline.png was not drawn: ValueError" in capsys.readouterr().out
    assert recorded(VECTORS).has_diagnostics
