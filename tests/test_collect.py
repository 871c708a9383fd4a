"""Acting: how environments whose episodes all last equally long come to stand apart."""

import numpy as np
import torch

from mtxl_rl.build import build_policy
from mtxl_rl.collect import Actor, observation_shapes
from mtxl_rl.config import compose_config
from mtxl_rl.envs.registry import make_vector_env


def staggered(num_steps: int, *, num_envs: int = 8) -> Actor:
    config = compose_config(["env=RepeatFirst", "env.difficulty=easy", "model=tiny"])
    env = make_vector_env(config.env, num_envs=num_envs, seed=3)
    actor = Actor(
        env, build_policy(config, env), shapes=observation_shapes(env.single_observation_space)
    )
    actor.reset(seed=None, stagger_steps=num_steps)
    return actor


def test_environments_of_one_length_are_spread_over_an_episode() -> None:
    # Episodes last 51 steps and a row to reset in: of each 6 or 7 steps ago one of 8 began then.
    actor = staggered(52)
    ends: dict[int, int] = {}
    for t in range(60):
        action = torch.zeros(8, *actor.policy.action_head.action_shape, dtype=torch.long)
        terminated, truncated = actor.step(action)
        for row in np.flatnonzero(terminated | truncated):
            ends.setdefault(int(row), t)
    assert sorted(ends) == list(range(8))
    assert len(set(ends.values())) == 8
    assert max(np.diff(sorted(ends.values()))) <= 13


def test_who_is_spread_starts_with_an_empty_memory_and_twice_alike() -> None:
    first, again = staggered(20), staggered(20)
    assert bool(first.is_first.all())
    assert not first.is_final.any()
    assert torch.equal(first.observation["obs"], again.observation["obs"])
