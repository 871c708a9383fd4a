"""The registry: names, configs, and what stays out of an import."""

import dataclasses
from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import ENVS, env_entry, make_vector_env
from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.tmaze import TMazeConfig
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics


def test_every_known_name_is_there() -> None:
    adapters = {"MemoryMaze", "MemoryMaze-original", "Gymnasium", "EnvPool"}
    assert set(ENVS) == {*TASKS, *adapters}


@pytest.mark.parametrize("name", ENVS)
def test_every_config_is_a_structured_config_that_holds_its_name(name: str) -> None:
    config_class = env_entry(name).config_class
    structured = OmegaConf.merge(OmegaConf.structured(config_class), {"name": name})
    assert OmegaConf.to_object(structured) == config_class(name=name)
    assert next(iter(field.name for field in dataclasses.fields(config_class))) == "name"


def test_what_is_made_is_checked() -> None:
    env = make_vector_env(TMazeConfig(), num_envs=2, seed=0)
    assert isinstance(env, EpisodeStatistics)
    assert isinstance(env.env, CheckedVectorEnv)
    assert env.num_envs == 2


def test_an_unknown_name_lists_the_known_ones_most_similar_first() -> None:
    with pytest.raises(
        ValueError,
        match=r"env.name=tmase is unknown; choose one of TMaze, ActiveTMaze",
    ):
        make_vector_env(TMazeConfig(name="tmase"), num_envs=2, seed=0)


def test_a_config_of_another_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="=EnvPool came with a TMazeConfig; pass a EnvPoolConfig"):
        make_vector_env(TMazeConfig(name="EnvPool"), num_envs=2, seed=0)


@pytest.mark.parametrize(("num_envs", "seed"), [(0, 0), (2, -1)])
def test_a_size_or_seed_out_of_range_is_refused(num_envs: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1 and seed=-?\d at least 0, e.g."):
        make_vector_env(TMazeConfig(), num_envs=num_envs, seed=seed)


def test_importing_the_registry_loads_no_heavy_package(
    imported_packages: Callable[..., set[str]],
) -> None:
    heavy = {"torch", "numba", "labmaze", "envpool", "mujoco", "dm_control", "memory_maze"}
    assert imported_packages("mtxl_rl.envs.registry") & heavy == set()


@pytest.mark.parametrize("name", ENVS)
def test_every_environment_has_defaults_that_compose(name: str) -> None:
    config = compose_config([f"env={name}"])
    assert type(config.env) is env_entry(name).config_class
    assert config.env.name == name
