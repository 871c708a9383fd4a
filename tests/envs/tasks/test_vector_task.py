"""What all built-in tasks have from their base, and how they describe themselves."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mtxl_rl.envs.__main__ import table
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.envs.tasks.cards import CardConfig, RepeatFirst
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry
from mtxl_rl.envs.tasks.endless_tmaze import EndlessTMazeConfig
from mtxl_rl.envs.tasks.tmaze import TMaze, TMazeConfig
from mtxl_rl.envs.tasks.vector_task import TaskConfig, VectorTask


def make(name: str, *, num_envs: int, seed: Any = 0) -> VectorTask:  # noqa: ANN401
    task = TASKS[name]
    return task.task_class(task.configs()[0], num_envs=num_envs, seed=seed)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", TASKS)
def test_an_environment_does_not_depend_on_the_number_of_others(name: str) -> None:
    few, many = make(name, num_envs=2), make(name, num_envs=7)
    ours, expected = few.reset()[0], many.reset()[0]
    rng = np.random.default_rng(0)
    for _ in range(60):
        np.testing.assert_array_equal(ours, expected[:2])
        actions = rng.integers(few.num_actions, size=7)
        expected = many.step(actions)[0]
        ours = few.step(actions[:2])[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_state_is_plain_complete_and_a_copy(name: str) -> None:
    env = make(name, num_envs=3)
    env.reset()
    state = env.get_state()
    assert all(isinstance(value, np.ndarray | str | int) for value in state.values())
    kept = {key: np.array(value) for key, value in state.items()}
    rng = np.random.default_rng(0)
    actions = rng.integers(env.num_actions, size=(30, 3))
    first = [env.step(action)[0] for action in actions]
    env.set_state(state)
    second = [env.step(action)[0] for action in actions]
    np.testing.assert_array_equal(first, second)
    for key, value in kept.items():
        np.testing.assert_array_equal(state[key], value)


def test_a_state_of_other_settings_is_refused_with_both() -> None:
    state = RepeatFirst(CardConfig(name="RepeatFirst"), num_envs=2).get_state()
    other = RepeatFirst(CardConfig(name="RepeatFirst", difficulty="hard"), num_envs=2)
    with pytest.raises(ValueError, match=r'"easy".* and this one .*"hard".*with the saved set'):
        other.set_state(state)


@pytest.mark.parametrize("actions", [[0, 2], [0, -1], [0], [[0, 1]]])
def test_illegal_actions_are_refused(actions: list[int]) -> None:
    env = TMaze(TMazeConfig(), num_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=r"pass an array of shape \(2,\) of whole numbers from 0"):
        env.step(np.array(actions))


def test_unknown_reset_options_and_seeds_of_another_count_are_refused() -> None:
    env = TMaze(TMazeConfig(), num_envs=2)
    with pytest.raises(ValueError, match=r"\['maze'\] are unknown; TMaze accepts only reset_mask"):
        env.reset(options={"maze": 1})
    with pytest.raises(ValueError, match="got 3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])


@pytest.mark.parametrize("name", ["RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall",
                                  "Concentration"])  # fmt: skip
def test_an_unknown_difficulty_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"=none is unknown; choose one of easy, medium, hard"):
        TASKS[name].config(difficulty="none")


def variants() -> list[Any]:
    return [
        pytest.param(task, config, id=f"{name} {settings}")
        for name, task in TASKS.items()
        for settings, config in zip(task.variants, task.configs(), strict=True)
        # A picture's rules are those of the vector, a larger maze's those of the first.
        if settings.get("view") != "image" and settings.get("size", "9x9") == "9x9"
    ]


@pytest.mark.parametrize(("task", "config"), variants())
def test_no_episode_is_longer_or_pays_other_than_described(
    task: TaskEntry, config: TaskConfig
) -> None:
    described = config.describe()
    env = task.task_class(config, num_envs=20, seed=1)  # type: ignore[call-arg]
    env.reset()
    rng = np.random.default_rng(0)
    returns, running = np.zeros(20), np.ones(20, dtype=np.bool_)
    named = getattr(config, "steps_per_episode", 0)
    if isinstance(config, EndlessTMazeConfig):  # It names the length of episodes that succeed.
        named = 0
    for step in range(described.horizon):
        assert running.all() or step >= named
        actions = rng.integers(env.num_actions, size=20)
        _, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    assert not running.any()
    low, high = described.reward_range
    assert (returns >= low - 1e-4).all()
    assert (returns <= high + 1e-4).all()
    assert 0 <= described.memory_window < described.horizon


@pytest.mark.parametrize("name", TASKS)
def test_a_config_knows_its_task_and_describes_itself_in_one_line(name: str) -> None:
    config = TASKS[name].config()
    assert next(iter(dataclasses.fields(config))).name == "name"  # type: ignore[arg-type]
    assert config.name == name
    assert "\n" not in str(config.describe())


def test_the_table_lists_every_task_and_every_other_entry() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mtxl_rl.envs"], capture_output=True, text=True, check=True
    )
    assert result.stdout == table() + "\n"
    for name in ENVS:
        assert f"env={name}" in result.stdout
