"""The built-in tasks by their Gymnasium ids, as single environments and as vectors."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mtxl_rl.envs.gymnasium_ids import make_task_vector
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.tmaze import TMaze


@pytest.mark.parametrize("name", TASKS)
def test_gymnasiums_checker_passes(name: str) -> None:
    env = gymnasium.make(f"mtxl_rl/{name}-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


# Sizes and difficulties differ in numbers only: the smallest and the largest stand for all.
VARIANTS = [
    (name, settings)
    for name, task in TASKS.items()
    for settings in task.variants[:1] + task.variants[1:][-1:]
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_pictures_of_a_whole_episode_have_one_size(name: str, settings: dict[str, Any]) -> None:
    env = make_task_vector(1, name=name, seed=0, render_mode="rgb_array", **settings)
    env.reset()
    shapes = set()
    for step in range(min(env.config.describe().horizon, 1000) + 1):
        if step < 5 or step % 50 == 0 or env.is_reset_row.any():
            (picture,) = env.render() or ()
            assert picture.dtype == np.uint8
            shapes.add(picture.shape)
        env.step(env.action_space.sample())
    assert {shape[2] for shape in shapes} == {3}
    if settings.get("regime") != "uniform" and name != "CountRecall":
        assert len(shapes) == 1


def test_a_single_environment_is_the_vectors_first() -> None:
    env: Any = gymnasium.make("mtxl_rl/TMaze-v0", corridor_length=2)
    vector: Any = gymnasium.make_vec(
        "mtxl_rl/TMaze-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        corridor_length=2,
    )
    assert isinstance(vector.unwrapped, TMaze)
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation, vector.reset(seed=3)[0][0])
    for step in range(3):
        observation, reward, terminated, truncated, info = env.step(1)
        observations, rewards, *_ = vector.step(np.ones(4, dtype=np.int64))
        np.testing.assert_array_equal(observation, observations[0])
        assert (reward, terminated, truncated) == (rewards[0], step == 2, False)
    assert info["success"] == (reward == 1)


def test_without_a_seed_two_environments_differ() -> None:
    first, second = (make_task_vector(64, name="TMaze").reset()[0] for _ in range(2))
    assert (first != second).any()


def test_without_a_render_mode_nothing_is_drawn_and_an_unknown_one_is_refused() -> None:
    env = gymnasium.make("mtxl_rl/TMaze-v0", disable_env_checker=True)
    env.reset()
    assert env.unwrapped.render() is None
    with pytest.raises(ValueError, match="render_mode='human' is unknown; pass render_mode='rgb"):
        make_task_vector(1, name="TMaze", render_mode="human")


def test_a_step_outside_of_an_episode_is_refused() -> None:
    env = gymnasium.make("mtxl_rl/TMaze-v0", corridor_length=1).unwrapped
    with pytest.raises(ValueError, match=r"before the first reset\(\) or after the episode's end"):
        env.step(0)
    env.reset()
    env.step(0)
    assert env.step(0)[2]
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        env.step(0)
