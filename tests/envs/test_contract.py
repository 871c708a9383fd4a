"""One suite for every environment that can be made here cheaply."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from mtxl_rl.envs.backends.envpool_env import EnvPoolConfig
from mtxl_rl.envs.backends.gymnasium_env import GymnasiumConfig
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.registry import EnvConfig, make_vector_env
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.tmaze import TMazeConfig
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv

NUM_ENVS = 5
# Difficulties and sizes differ in numbers only, views in pictures: the first stands for all.
BUILT_IN: dict[str, EnvConfig] = {
    f"{name} {settings}": config
    for name, task in TASKS.items()
    for settings, config in zip(task.variants, task.configs(), strict=True)
    if settings == task.variants[0] or not {"difficulty", "size", "level", "view"} & set(settings)
}
CONFIGS: dict[str, EnvConfig] = {
    **BUILT_IN,
    "TMaze of 4": TMazeConfig(corridor_length=4),
    "MemoryMaze": MemoryMazeConfig(num_threads=2, episode_length=20),
    "MemoryMaze ExtraObs": MemoryMazeConfig(
        num_threads=1, episode_length=20, extra_observations=True
    ),
    "Gymnasium CartPole": GymnasiumConfig(id="CartPole-v1"),
    "Gymnasium Pendulum": GymnasiumConfig(id="Pendulum-v1", kwargs={"max_episode_steps": 20}),
    "Gymnasium Taxi": GymnasiumConfig(id="Taxi-v4", kwargs={"max_episode_steps": 20}),
    "Gymnasium FrozenLake": GymnasiumConfig(id="FrozenLake-v1"),
    "EnvPool CartPole": EnvPoolConfig(id="CartPole-v1", num_threads=1),
    "EnvPool Pendulum": EnvPoolConfig(
        id="Pendulum-v1", num_threads=1, kwargs={"max_episode_steps": 20}
    ),
    "EnvPool MiniGrid": EnvPoolConfig(
        id="MiniGrid-MemoryS7-v0", num_threads=2, kwargs={"max_episode_steps": 30}
    ),
}
Make = Callable[..., CheckedVectorEnv]
Step = tuple[Any, Any, Any, Any, dict[str, Any]]


@pytest.fixture(params=CONFIGS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    opened: list[CheckedVectorEnv] = []

    def make_one(*, seed: int = 0, num_envs: int = NUM_ENVS) -> CheckedVectorEnv:
        opened.append(make_vector_env(CONFIGS[request.param], num_envs=num_envs, seed=seed))
        return opened[-1]

    yield make_one
    for env in opened:
        env.close()


def actions_for(env: CheckedVectorEnv, *, seed: int = 0) -> Iterator[Any]:
    """An endless stream of actions, the same one in each environment of the batch."""
    space = type(env.single_action_space)
    rng = np.random.default_rng(seed)
    while True:
        if space is spaces.Discrete:
            yield np.full(env.num_envs, rng.integers(env.single_action_space.n))  # type: ignore[attr-defined]
        else:
            action = rng.uniform(-1, 1, size=env.single_action_space.shape)
            yield np.tile(action.astype(np.float32), (env.num_envs, 1))


def flat(observations: Any) -> np.ndarray:  # noqa: ANN401
    """The batch of observations as one matrix with a row for each environment."""
    parts = (
        [observations[key] for key in sorted(observations)]
        if isinstance(observations, dict)
        else [observations]
    )
    return np.concatenate(
        [part.reshape(len(part), -1).astype(np.float64) for part in parts], axis=1
    )


def run_until_end(env: CheckedVectorEnv, actions: Iterator[Any]) -> Step:
    """The step in which the first episode ends."""
    for action in itertools.islice(actions, 1100):
        step = env.step(action)
        if (step[2] | step[3]).any():
            return step
    raise AssertionError("no episode ended in 1,100 steps")


def trajectory(
    env: CheckedVectorEnv, *, num_steps: int = 40, reset_seed: int | None = None
) -> np.ndarray:
    """Observations, rewards and flags of `num_steps` steps, [step, environment, number]."""
    rows = [np.pad(flat(env.reset(seed=reset_seed)[0]), ((0, 0), (0, 3)))]
    for action in itertools.islice(actions_for(env), num_steps):
        observations, rewards, terminated, truncated, _ = env.step(action)
        rows.append(np.column_stack([flat(observations), rewards, terminated, truncated]))
    return np.stack(rows)


def test_the_batch_spaces_are_those_of_one_environment_batched(make: Make) -> None:
    env = make()
    assert env.observation_space == batch_space(env.single_observation_space, NUM_ENVS)
    assert env.action_space == batch_space(env.single_action_space, NUM_ENVS)
    assert env.num_envs == NUM_ENVS
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_what_is_returned_has_the_promised_shapes_and_dtypes(make: Make) -> None:
    env = make()
    observations, infos = env.reset()
    assert env.observation_space.contains(observations)
    assert isinstance(infos, dict)
    for action in itertools.islice(actions_for(env), 30):
        assert env.action_space.contains(action.astype(env.action_space.dtype))
        observations, rewards, terminated, truncated, infos = env.step(action)
        for leaf, space in leaves(observations, env.observation_space):
            assert leaf.shape == space.shape
            assert leaf.dtype == space.dtype
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (
            np.float32,
            np.bool_,
            np.bool_,
        )
        assert rewards.shape == terminated.shape == truncated.shape == (NUM_ENVS,)
        for key, value in infos.items():
            for array in value.values() if isinstance(value, dict) else [value]:
                assert len(array) == NUM_ENVS, key
            assert key.startswith("_") or infos[f"_{key}"].dtype == np.bool_


def leaves(observations: Any, space: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    if isinstance(space, spaces.Dict):
        assert set(observations) == set(space.spaces)
        return [(observations[key], leaf) for key, leaf in space.spaces.items()]
    return [(observations, space)]


def test_a_step_before_the_first_reset_is_refused(make: Make) -> None:
    env = make()
    with pytest.raises(ValueError, match=r"step\(\) came before the first reset\(\)"):
        env.step(next(actions_for(env)))


def test_the_same_seed_repeats_the_run(make: Make) -> None:
    np.testing.assert_array_equal(trajectory(make(seed=3)), trajectory(make(seed=3)))


def test_reset_with_a_seed_repeats_an_environment_made_with_it(make: Make) -> None:
    made_with_it = trajectory(make(seed=3))
    env = make(seed=8)
    env.reset()
    env.reset(seed=3)
    np.testing.assert_array_equal(trajectory(env, reset_seed=3), made_with_it)


def test_another_seed_gives_another_run(make: Make) -> None:
    assert (trajectory(make(seed=3)) != trajectory(make(seed=4))).any()


def test_the_environments_of_a_batch_differ(make: Make) -> None:
    steps = trajectory(make(num_envs=8))
    assert (steps != steps[:, :1]).any()


def test_the_row_after_an_end_ignores_the_action_and_shows_a_reset(make: Make) -> None:
    env, other = make(), make()
    env.reset()
    other.reset()
    run_until_end(other, actions_for(other))
    _, _, terminated, truncated, _ = run_until_end(env, actions_for(env))
    ended = terminated | truncated
    action = next(actions_for(env))
    other_action = next(
        candidate for candidate in actions_for(env, seed=1) if (candidate != action).any()
    )
    observations, rewards, terminated, truncated, _ = env.step(action)
    other_observations = other.step(other_action)[0]
    np.testing.assert_array_equal(flat(observations)[ended], flat(other_observations)[ended])
    assert not rewards[ended].any()
    assert not (terminated | truncated)[ended].any()


def test_autoreset_shows_what_a_reset_of_these_rows_would_have_shown(make: Make) -> None:
    env, other = make(), make()
    env.reset()
    other.reset()
    _, _, terminated, truncated, _ = run_until_end(env, actions_for(env))
    ended = terminated | truncated
    run_until_end(other, actions_for(other))
    by_step = env.step(next(actions_for(env)))[0]
    by_reset, _ = other.reset(options={"reset_mask": ended})
    np.testing.assert_array_equal(flat(by_step)[ended], flat(by_reset)[ended])


def test_a_partial_reset_leaves_the_other_rows_alone(make: Make) -> None:
    env, other = make(), make()
    env.reset()
    other.reset()
    action = next(actions_for(env))
    before = env.step(action)[0]
    other.step(action)
    mask = np.arange(NUM_ENVS) == 1
    options = {"reset_mask": mask}
    after, _ = env.reset(options=options)
    assert env.observation_space.contains(after)
    np.testing.assert_array_equal(flat(after)[~mask], flat(before)[~mask])
    np.testing.assert_array_equal(
        flat(env.step(action)[0])[~mask], flat(other.step(action)[0])[~mask]
    )
    assert "reset_mask" in options


def test_returned_arrays_are_not_written_to_later(make: Make) -> None:
    env = make()
    observations, _ = env.reset()
    kept = [observations]
    copies = [flat(observations).copy()]
    for action in itertools.islice(actions_for(env), 10):
        kept.append(env.step(action)[0])
        copies.append(flat(kept[-1]).copy())
    for observations, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(flat(observations), copy)


def test_a_restored_state_continues_bit_for_bit(make: Make) -> None:
    env = make()
    env.reset()
    if not env.supports_state:
        with pytest.raises(ValueError, match="cannot be saved and restored; check supports_state"):
            env.get_state()
        return
    actions = actions_for(env)
    for action in itertools.islice(actions, 7):
        env.step(action)
    state = env.get_state()
    rest = list(itertools.islice(actions, 40))
    expected = [env.step(action) for action in rest]
    restored = make(seed=99)
    restored.set_state(state)
    for action, step in zip(rest, expected, strict=True):
        for ours, original in zip(restored.step(action)[:4], step[:4], strict=True):
            np.testing.assert_array_equal(flat(ours), flat(original))


def test_closing_twice_is_fine_and_stepping_afterwards_is_not(make: Make) -> None:
    env = make()
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ValueError, match=r"after close\(\)"):
        env.step(next(actions_for(env)))
    with pytest.raises(ValueError, match=r"after close\(\)"):
        env.reset()


@pytest.mark.parametrize("name", ["Gymnasium CartPole", "EnvPool CartPole"])
def test_the_ending_step_returns_the_final_observation(name: str) -> None:
    env = make_vector_env(CONFIGS[name], num_envs=NUM_ENVS, seed=0)
    env.reset()
    observations, rewards, terminated, _, _ = run_until_end(env, actions_for(env))
    # CartPole ends when the pole leans more than 12 degrees; a reset has it within 3.
    assert (np.abs(observations[terminated, 2]) > np.deg2rad(12)).all()
    assert (rewards[terminated] == 1).all()
    env.close()
