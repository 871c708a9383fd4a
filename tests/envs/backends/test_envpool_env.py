"""EnvPool's quirks, put right."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mtxl_rl.envs.backends.envpool_env import (
    EnvPoolConfig,
    EnvPoolVectorEnv,
    env_seeds,
    make_envpool,
)
from mtxl_rl.envs.backends.gymnasium_env import make_gymnasium
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.envs.tasks.tmaze import TMazeConfig

envpool = pytest.importorskip("envpool")


def cartpole(
    *, num_envs: int = 4, seed: int | list[int] = 0, num_threads: int = 1
) -> EnvPoolVectorEnv:
    return EnvPoolVectorEnv("CartPole-v1", num_envs=num_envs, seed=seed, num_threads=num_threads)


def test_seeds_never_repeat_within_a_batch_nor_between_neighbouring_seeds() -> None:
    seeds = [env_seed for seed in range(20) for env_seed in env_seeds(seed, num_envs=64)]
    assert len(set(seeds)) == len(seeds)
    assert len(set(env_seeds(0, num_envs=100_000))) == 100_000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_environment_i_has_the_same_seed_whatever_the_size_of_the_batch() -> None:
    assert env_seeds(7, num_envs=64)[:3] == env_seeds(7, num_envs=3)


def test_runs_of_neighbouring_seeds_share_no_environment() -> None:
    first, second = cartpole(seed=0).reset()[0], cartpole(seed=1).reset()[0]
    assert not (first[:, None] == second[None]).all(axis=2).any()


def test_reset_with_a_seed_is_obeyed() -> None:
    env = cartpole(seed=0)
    first, _ = env.reset()
    assert (env.reset(seed=5)[0] != first).any()
    np.testing.assert_array_equal(env.reset(seed=0)[0], first)
    np.testing.assert_array_equal(env.reset(seed=env_seeds(0, num_envs=4))[0], first)


def test_the_seed_of_construction_does_not_make_an_unused_pool_anew() -> None:
    env = cartpole(seed=3)
    pool = env._pool
    env.reset(seed=3)
    assert env._pool is pool
    env.reset(seed=3)
    assert env._pool is not pool


def test_the_number_of_threads_changes_nothing() -> None:
    env, threaded = cartpole(num_envs=8), cartpole(num_envs=8, num_threads=2)
    env.reset()
    threaded.reset()
    actions = np.arange(8) % 2
    for _ in range(50):
        for ours, expected in zip(env.step(actions)[:4], threaded.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_infos_follow_gymnasium() -> None:
    env = cartpole()
    _, infos = env.reset()
    assert set(infos) == {"elapsed_step", "_elapsed_step"}
    env.step(np.zeros(4, dtype=np.int64))
    _, infos = env.reset(options={"reset_mask": np.array([False, True, False, False])})
    assert infos["_elapsed_step"].tolist() == [False, True, False, False]
    assert infos["elapsed_step"].shape == (4,)


def test_a_partial_reset_starts_an_ended_row_once() -> None:
    env = cartpole()
    env.reset()
    ended = np.zeros(4, dtype=np.bool_)
    while not ended.any():
        ended = env.step(np.zeros(4, dtype=np.int64))[2]
    env.reset(options={"reset_mask": ended})
    _, rewards, _, _, infos = env.step(np.zeros(4, dtype=np.int64))
    # Not a second reset, which would have reward 0 and no step behind it.
    assert (rewards == 1).all()
    assert (infos["elapsed_step"][ended] == 1).all()


def test_discrete_observations_have_their_spaces_dtype() -> None:
    env = EnvPoolVectorEnv("FrozenLake-v1", num_envs=3, seed=0)
    observations, _ = env.reset()
    assert observations.dtype == env.observation_space.dtype == np.int64


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "BabyAI-OpenTwoDoors-v0"])
def test_minigrid_is_observed_as_through_gymnasium(env_id: str) -> None:
    pytest.importorskip("minigrid")
    env = EnvPoolVectorEnv(env_id, num_envs=3, seed=0)
    other = make_gymnasium(env_id, num_envs=3, seed=0)
    assert env.observation_space == other.observation_space
    observations, _ = env.reset()
    expected, _ = other.reset()
    for _ in range(30):
        assert env.observation_space.contains(observations)
        assert other.observation_space.contains(expected)
        actions = env.action_space.sample()
        observations, expected = env.step(actions)[0], other.step(actions)[0]
    if "Memory" in env_id:  # one mission for all
        np.testing.assert_array_equal(observations["mission"], expected["mission"])


def test_minigrids_cells_keep_their_order() -> None:
    env = EnvPoolVectorEnv("MiniGrid-MemoryS7-v0", num_envs=2, seed=0)
    raw = envpool.make(
        "MiniGrid-MemoryS7-v0", env_type="gymnasium", num_envs=2, seed=env_seeds(0, num_envs=2)
    )
    cells = env.reset()[0]["image"].reshape(2, 7, 7, 3)
    np.testing.assert_array_equal(cells, raw.reset()[0]["image"])


def test_kwargs_reach_envpool() -> None:
    config = EnvPoolConfig(id="CartPole-v1", num_threads=1, kwargs={"max_episode_steps": 3})
    env = make_envpool(config, num_envs=2, seed=0)
    env.reset()
    truncated = [env.step(np.arange(2))[3].all() for _ in range(3)]
    assert truncated == [False, False, True]


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^env=EnvPool needs env.id=..., e.g. env.id=MiniGrid"):
        make_envpool(EnvPoolConfig(), num_envs=2, seed=0)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"is not one of EnvPool's .* similar ids are MiniGrid-MemoryS"
    ):
        EnvPoolVectorEnv("MiniGrid-MemoryS15-v0", num_envs=2, seed=0)


def test_unknown_kwargs_name_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"env.kwargs does not fit .*'gravity'.*max_episode_steps"):
        EnvPoolVectorEnv("CartPole-v1", num_envs=2, seed=0, kwargs={"gravity": 3})


def test_a_game_of_several_players_is_refused() -> None:
    with pytest.raises(ValueError, match="KuhnPoker-v1 is a game of 2 players; only"):
        EnvPoolVectorEnv("KuhnPoker-v1", num_envs=2, seed=0)


def test_actions_without_bounds_worth_the_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"declares actions from 2.2.*use_combined_action=true"):
        EnvPoolVectorEnv("MyWayHome-v1", num_envs=1, seed=0)


def test_settings_that_are_not_kwargs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env.kwargs has \['seed'\], which env.num_threads"):
        EnvPoolConfig(id="CartPole-v1", kwargs={"seed": 3})
    with pytest.raises(ValueError, match=r"env.num_threads=-1 must be 0"):
        EnvPoolConfig(num_threads=-1)


@pytest.mark.parametrize("seeds", [[1, 2], [-1, 0, 1, 2], [0, 1, 2, 2**31]])
def test_seeds_that_do_not_fit_are_refused(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="for 4 environments; pass one"):
        cartpole(seed=seeds)


def test_a_partial_reset_needs_a_running_pool_and_no_seed() -> None:
    mask = np.array([True, False, False, False])
    env = cartpole()
    with pytest.raises(ValueError, match=r"call reset\(\) without a mask"):
        env.reset(options={"reset_mask": mask})
    env.reset()
    with pytest.raises(ValueError, match=r"call reset\(\) without a mask"):
        env.reset(seed=1, options={"reset_mask": mask})


def test_a_broken_envpool_is_named_and_costs_no_other_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "envpool.py").write_text("raise OSError('a library is missing')")
    monkeypatch.delitem(sys.modules, "envpool", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"cannot be imported on .* \(a library is missing\)"):
        make_envpool(EnvPoolConfig(id="CartPole-v1"), num_envs=2, seed=0)
    make_vector_env(TMazeConfig(), num_envs=2, seed=0).close()


def test_a_missing_envpool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"env=EnvPool needs the package envpool.*env=Gymnasium"):
        cartpole()


def test_what_an_id_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_qt(env_id: str, **_: object) -> None:
        raise ImportError(f"{env_id} requires the system Qt 5 runtime")

    monkeypatch.setattr("envpool.make_spec", without_qt)
    with pytest.raises(ImportError, match=r"cannot load env.id=CartPole-v1: .*Qt 5 runtime"):
        cartpole()
