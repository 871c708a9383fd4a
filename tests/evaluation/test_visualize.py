"""Videos and memory timelines: what they show, and what happens when they cannot be written."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.policy import Policy, PolicyConfig, PolicyInputs
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.tasks.tmaze import TMazeConfig
from mtxl_rl.evaluation.visualize import VideoRecorder, require_drawing
from mtxl_rl.torso import TorsoConfig

pytest.importorskip("matplotlib")

IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


def recorded(
    space: gymnasium.Space, *, steps: int = 12, max_steps: int = 10, **torso: object
) -> VideoRecorder:
    """A recording of two environments, whose second episodes start at step 7."""
    torch.manual_seed(0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, **torso)
    policy = Policy(space, spaces.Discrete(3), torso=config, policy=PolicyConfig())
    recorder = VideoRecorder(policy, space, max_steps=max_steps, title="TMaze")
    space.seed(0)
    for t in range(steps):
        recorder.add(
            PolicyInputs(
                {"obs": torch.as_tensor(np.stack([space.sample(), space.sample()]))},
                torch.zeros(2, 1, dtype=torch.long),
                torch.full((2,), float(t == 5)),
                torch.full((2,), t in (0, 7)),
            )
        )
    return recorder


def titles(axes: Any) -> list[str]:  # noqa: ANN401
    return [axis.get_title(loc="left") for axis in axes if axis.get_title(loc="left")]


@pytest.mark.training
def test_a_video_has_a_frame_per_step(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    recorder = recorded(IMAGES)
    recorder.write_video(tmp_path / "new" / "agent.gif")
    frames = imageio.mimread(tmp_path / "new" / "agent.gif")
    assert [frame.shape for frame in frames] == [(400, 800, 3)] * 10
    assert len({frame.tobytes() for frame in frames}) == 10
    recorder.write_video(tmp_path / "agent.mp4")  # It counts its frames.
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
def test_every_observation_and_torso_has_a_video(space: gymnasium.Space, kind: str) -> None:
    frames = list(recorded(space, steps=2, kind=kind)._frames())
    assert [frame.shape for frame in frames] == [(400, 800, 3)] * 2
    assert (frames[0] != frames[1]).any()


def test_the_reward_of_a_step_is_what_its_action_earned() -> None:
    rewards = recorded(VECTORS)._rewards()
    assert rewards[:-1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert np.isnan(rewards[-1])


@pytest.mark.parametrize("long_term", ["delta", "slots", "none"])
@pytest.mark.parametrize("name", ["memory.png", "memory.svg"])
@pytest.mark.training
def test_a_timeline_is_drawn_for_every_memory(tmp_path: Path, long_term: str, name: str) -> None:
    recorded(VECTORS, long_term=long_term).write_timeline(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5_000


def test_a_timeline_names_the_task_the_layers_and_the_scales() -> None:
    recorder = recorded(VECTORS, num_layers=3, memory_layers=[2, 3])
    figure = recorder._draw_timeline()
    assert figure.get_suptitle().startswith("TMaze: transformer with delta memory")
    assert titles(figure.axes) == [
        "Observation",
        "Reward",
        "Action",
        "Write strength, mean over heads",
        "Read, as a change relative to the stream",
        *(
            f"Retrieved from, layer {n}: an arc from the write (red) that a read returns most of; "
            "colour: its share; width: the read's effect"
            for n in (2, 3)
        ),
        *(f"Attention weight on the window, layer {n}, mean over heads" for n in (1, 2, 3)),
    ]
    write, read, _, _, *attention = figure.axes[3:10]
    for axis in (write, read):
        assert [label.get_text() for label in axis.get_yticklabels()] == ["layer 2", "layer 3"]
    assert write.images[0].get_clim() == (0, 1)
    for axis, record in zip(attention, recorder.records, strict=True):
        weights = record["attention/window"][0].mean(dim=1).T.numpy()
        assert axis.images[0].get_clim() == (1e-3, 1)
        assert np.allclose(axis.images[0].get_array().filled(0), weights)


def test_the_panels_are_those_of_the_steps_recorded() -> None:
    short, long = (recorded(VECTORS, max_steps=steps)._panels() for steps in (6, 10))
    assert len(short) == len(long) == 2
    for a, b in zip(short, long, strict=True):
        assert list(a.layers) == list(b.layers) == [1, 2]
        for layer, values in a.layers.items():
            assert b.layers[layer].shape == (10,)
            assert np.allclose(b.layers[layer][:6], values, rtol=1e-4)


def test_slots_show_the_attention_on_them() -> None:
    (slots,) = recorded(VECTORS, long_term="slots")._panels()
    for weights in slots.layers.values():
        assert np.allclose(weights[:4], 0, atol=1e-6)  # Nothing is written before step 4.
        assert weights[4:7].min() > 0


@pytest.mark.parametrize("name", ["agent.mp4", "agent.gif", "memory.png"])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("imageio.v2")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recorder, path = recorded(IMAGES, steps=2), tmp_path / name
    path.write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    write = recorder.write_timeline if name == "memory.png" else recorder.write_video
    with pytest.raises(OSError, match=f"cannot write {path}: No space.*; free space") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"


def test_an_encoder_that_fails_leaves_no_torn_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        recorded(IMAGES, steps=2).write_video(tmp_path / "agent.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_has_no_timeline(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recorder = recorded(VECTORS, kind="gru")
    assert not recorder.has_timeline
    with pytest.raises(ValueError, match="a torso of kind gru does not have; leave it out"):
        recorder.write_timeline(tmp_path / "timeline.png")
    assert not recorder.write(tmp_path / "timeline.png")
    assert "timeline.png was not drawn: ValueError" in capsys.readouterr().out
    assert recorded(VECTORS).has_timeline


@pytest.mark.parametrize(("option", "missing"), [("video", "imageio"), ("timeline", "matplotlib")])
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, option: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # As if it were not installed.
    with pytest.raises(ImportError, match=rf"{option}= needs {missing}: pip install"):
        require_drawing(option)


def test_a_built_in_task_without_images_is_drawn_by_itself() -> None:
    env = make_vector_env(TMazeConfig(corridor_length=5), num_envs=2, seed=0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4)
    observation, action = env.single_observation_space, env.single_action_space
    policy = Policy(observation, action, torso=config, policy=PolicyConfig())
    actor = Actor(env, policy, generator=None)
    actor.reset(seed=0)
    recorder = VideoRecorder(policy, observation, max_steps=3)
    pictures = []
    with torch.no_grad():
        for _ in range(4):
            recorder.observe(actor)
            pictures.append(env.unwrapped.render_row(0))
            actor.step()
    assert len(recorder.inputs) == len(recorder.frames) == 3
    for frame, picture in zip(recorder.frames, pictures, strict=False):
        np.testing.assert_array_equal(frame, picture)
    assert len(list(recorder._frames())) == 3
    labels = recorder._draw_timeline().axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["cue left", "cue right", "junction"]
    env.close()


@pytest.mark.unchecked
def test_an_environment_that_cannot_draw_itself_loses_no_evaluation(
    capsys: pytest.CaptureFixture,
) -> None:
    def fail() -> None:
        raise RuntimeError("no display")

    recorder = recorded(VECTORS, steps=0)
    base = SimpleNamespace(render_mode="rgb_array")
    actor: Any = SimpleNamespace(env=SimpleNamespace(unwrapped=base, render=fail))
    for _ in range(2):
        recorder._render(actor)
    assert recorder.frames == []
    assert capsys.readouterr().out == "the environment was not drawn: RuntimeError: no display\n"
