"""Gymnasium's ids: how they are made, seeded, and refused."""

import builtins
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv

from mtxl_rl.envs.backends.gymnasium_env import GymnasiumConfig, make_gymnasium
from mtxl_rl.envs.registry import make_vector_env


def test_environment_i_is_seeded_with_seed_plus_i() -> None:
    env = make_gymnasium("CartPole-v1", num_envs=3, seed=10)
    observations, _ = env.reset()
    for index in range(3):
        single, _ = gymnasium.make("CartPole-v1").reset(seed=10 + index)
        np.testing.assert_array_equal(observations[index], single)
    assert (env.reset()[0] != observations).any()


def test_the_default_is_one_process_even_where_a_vector_entry_point_exists() -> None:
    assert isinstance(make_gymnasium("CartPole-v1", num_envs=2, seed=0).unwrapped, SyncVectorEnv)


def test_an_environments_own_vector_entry_point_can_be_chosen() -> None:
    kwargs = {"vectorization_mode": "vector_entry_point"}
    env = make_vector_env(GymnasiumConfig(id="CartPole-v1", kwargs=kwargs), num_envs=2, seed=0)
    assert isinstance(env.unwrapped, CartPoleVectorEnv)
    env.reset()
    env.step(np.zeros(2, dtype=np.int64))


def test_an_id_with_only_a_vector_entry_point_is_made_with_it() -> None:
    entry_point = "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"
    gymnasium.register("OnlyVector-v0", vector_entry_point=entry_point, max_episode_steps=9)
    try:
        env = make_gymnasium("OnlyVector-v0", num_envs=2, seed=0)
        assert isinstance(env.unwrapped, CartPoleVectorEnv)
    finally:
        del gymnasium.registry["OnlyVector-v0"]


def test_kwargs_reach_the_environment() -> None:
    env = make_gymnasium("FrozenLake-v1", num_envs=2, seed=0, kwargs={"map_name": "8x8"})
    assert env.single_observation_space == gymnasium.spaces.Discrete(64)


def test_another_autoreset_mode_is_refused_and_the_environment_closed() -> None:
    kwargs = {"vector_kwargs": {"autoreset_mode": "SameStep"}}
    config = GymnasiumConfig(id="CartPole-v1", kwargs=kwargs)
    with pytest.raises(ValueError, match=r"SAME_STEP, and only AutoresetMode.NEXT_STEP is legal"):
        make_vector_env(config, num_envs=2, seed=0)


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^env=Gymnasium needs env.id=..., e.g. env.id=CartPole-v1\.$"
    ):
        make_vector_env(GymnasiumConfig(), num_envs=2, seed=0)


@pytest.mark.parametrize("env_id", ["CartPol-v1", "CartPole", "CartPole-v7", "cartpole-v1"])
def test_an_unknown_id_names_the_nearest(env_id: str) -> None:
    with pytest.raises(ValueError, match=rf"env.id={env_id} is not registered.*are CartPole-v"):
        make_gymnasium(env_id, num_envs=2, seed=0)


def test_an_id_that_gymnasium_dropped_names_its_successor() -> None:
    with pytest.raises(
        ValueError, match="is not registered with Gymnasium; similar ids are Taxi-v4"
    ):
        make_gymnasium("Taxi-v3", num_envs=2, seed=0)


def test_a_missing_module_is_named() -> None:
    with pytest.raises(ImportError, match=r"env.id=nowhere:A-v0 needs the module nowhere"):
        make_gymnasium("nowhere:A-v0", num_envs=2, seed=0)


def test_a_missing_dependency_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = builtins.__import__

    def without_box2d(name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if name == "Box2D":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_box2d)
    with pytest.raises(ImportError, match=r"env.id=LunarLander-v3 needs .*pip install .*box2d"):
        make_gymnasium("LunarLander-v3", num_envs=2, seed=0)


@pytest.mark.parametrize(
    "kwargs", [{"foo": 1}, {"vectorization_mode": "vector_entry_point"}], ids=["unknown", "mode"]
)
def test_kwargs_that_the_environment_does_not_take_name_those_that_it_does(
    kwargs: dict[str, Any],
) -> None:
    with pytest.raises(
        ValueError, match=r"does not fit env.id=FrozenLake-v1 .* may have .*map_name"
    ):
        make_gymnasium("FrozenLake-v1", num_envs=2, seed=0, kwargs=kwargs)


def test_kwargs_with_a_setting_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env.kwargs has \['num_envs'\].*remove them from"):
        GymnasiumConfig(id="CartPole-v1", kwargs={"num_envs": 3})
