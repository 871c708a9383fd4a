"""What a recording holds: rewards, and pictures that environments draw of themselves."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.tasks.grid_memory_maze import GridMemoryMazeConfig
from mtxl_rl.envs.tasks.tmaze import TMazeConfig
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.evaluation.timeline import _draw_timeline
from mtxl_rl.evaluation.video import _frames
from mtxl_rl.torso import TorsoConfig

Record = Callable[..., Recording]
VECTORS = spaces.Box(-1, 1, (3,), np.float32)


def test_the_reward_of_a_step_is_what_its_action_earned(recorded: Record) -> None:
    rewards = recorded(VECTORS).rewards()
    assert rewards[:-1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert np.isnan(rewards[-1])


def test_the_return_is_what_the_episode_earned_before_a_step(recorded: Record) -> None:
    recording = recorded(VECTORS)  # 1 is earned at step 4, and an episode starts at step 7.
    assert recording.returns().tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.training
def test_a_maze_is_shown_as_the_agent_sees_it_and_from_above() -> None:
    env = make_vector_env(MemoryMazeConfig(textures="procedural"), num_envs=2, seed=0)
    above = make_vector_env(
        MemoryMazeConfig(textures="procedural", top_camera=True, camera_resolution=256),
        num_envs=2, seed=0,
    )  # fmt: skip
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4)
    observation, action = env.single_observation_space, env.single_action_space
    actor = Actor(
        env, Policy(observation, action, torso=config, policy=PolicyConfig()), generator=None
    )
    actor.reset(seed=0)
    picture, _ = above.reset(seed=0)
    recording = Recording(observation, policy=actor.policy, max_steps=3)
    with torch.no_grad():
        for _ in range(3):
            recording.observe(actor)
            np.testing.assert_array_equal(recording.frames[-1], picture[0])
            transition, _ = actor.step()
            picture = above.step(transition.decision.action[:, 0].numpy())[0]
    assert list(recording.pictures()) == ["what the agent sees", "the task"]
    assert [frame.shape for frame in _frames(recording)] == [(480, 1440, 3)] * 3


def test_a_built_in_task_without_images_is_drawn_by_itself() -> None:
    env = make_vector_env(TMazeConfig(corridor_length=5), num_envs=2, seed=0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4)
    observation, action = env.single_observation_space, env.single_action_space
    policy = Policy(observation, action, torso=config, policy=PolicyConfig())
    actor = Actor(env, policy, generator=None)
    actor.reset(seed=0)
    recording = Recording(policy.observation_space, policy=policy, max_steps=3)
    pictures = []
    with torch.no_grad():
        for _ in range(4):
            recording.observe(actor)
            pictures.append(env.unwrapped.render_row(0))
            actor.step()
    assert len(recording.inputs) == len(recording.frames) == 3
    for frame, picture in zip(recording.frames, pictures, strict=False):
        np.testing.assert_array_equal(frame, picture)
    assert len(list(_frames(recording))) == 3
    labels = _draw_timeline(recording).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["cue left", "cue right", "junction"]
    env.close()


def test_the_timeline_shows_the_observations_that_the_policy_receives() -> None:
    env = make_vector_env(GridMemoryMazeConfig(extra_observations=True), num_envs=1, seed=0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4)
    leaves = PolicyConfig(observations=["agent_pos", "agent_dir"])
    policy = Policy(
        env.single_observation_space, env.single_action_space, torso=config, policy=leaves
    )
    actor = Actor(env, policy, generator=None)
    actor.reset(seed=0)
    recording = Recording(policy.observation_space, policy=policy, max_steps=3)
    with torch.no_grad():
        for _ in range(3):
            recording.observe(actor)
            actor.step()
    assert recording.vectors().shape == (3, 4)
    labels = [label.get_text() for label in _draw_timeline(recording).axes[0].get_yticklabels()]
    assert labels == ["agent_dir", "agent_pos"]


@pytest.mark.unchecked
def test_an_environment_that_cannot_draw_itself_loses_no_evaluation(
    recorded: Record, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no display")

    recording = recorded(VECTORS, steps=0)
    base = SimpleNamespace(render_mode="rgb_array")
    env: Any = SimpleNamespace(unwrapped=base, render=fail)
    for _ in range(2):
        recording._render(env)
    assert recording.frames == []
    assert capsys.readouterr().out == "the environment was not drawn: RuntimeError: no display\n"
