"""Staggering spreads environments over their episodes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.stagger import Stagger
from mtxl_rl.build import build_policy
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.training.run import Run


@contextmanager
def staggered_actor(num_steps: int, *, num_envs: int = 8) -> Iterator[Actor]:
    config = compose_config(["env=RepeatFirst", "env.difficulty=easy", "model=tiny"])
    with closing(make_vector_env(config.env, num_envs=num_envs, seed=3)) as env:
        actor = Actor(env, build_policy(config, env, config.torch_device()), generator=None)
        actor.reset(seed=None, stagger=Stagger.over(num_steps, num_envs))
        yield actor


def test_environments_of_one_length_are_spread_over_an_episode() -> None:
    # Episodes last 51 steps and a reset row: every 6 or 7 steps one of 8 environments starts.
    ends: dict[int, int] = {}
    with staggered_actor(52) as actor:
        for t in range(60):
            actor.step()
            for row in np.flatnonzero(actor.is_reset_row):
                ends.setdefault(int(row), t)
    assert sorted(ends) == list(range(8))
    assert len(set(ends.values())) == 8
    assert max(np.diff(sorted(ends.values()))) <= 13


def test_staggered_environments_start_with_an_empty_memory_and_repeat() -> None:
    with staggered_actor(20) as first, staggered_actor(20) as second:
        assert bool(first.is_first.all())
        assert not first.is_reset_row.any()
        assert torch.equal(first.observation["obs"], second.observation["obs"])


@pytest.mark.parametrize(("options", "together"), [([], False), (["stagger_steps=0"], True)])
@pytest.mark.training
def test_a_run_spreads_a_task_whose_episodes_have_one_length(
    options: list[str], *, together: bool
) -> None:
    config = compose_config([
        "env=MemoryMaze", "env.episode_length=48", "model=tiny", "num_envs=4", "device=cpu",
        "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=32",
        "ppo.bptt_segments=4", "compile=false", *options,
    ])  # fmt: skip
    with closing(make_vector_env(config.env, num_envs=4, seed=5)) as env:
        run = Run(config, env)
        run.start(seed=None)
        ends, lengths = [], set()
        for _ in range(98):
            _, episodes = run.actor.step()
            ends.append(int(run.actor.is_reset_row.sum()))
            lengths |= {episode.length for episode in episodes}
    assert lengths == {48}  # No part of an episode is counted.
    assert (max(ends[:49]) == 4) == together


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        (["ColorCubes"], 0),  # It names no length: a wrong cube ends the episode early.
        (["TMaze"], 101),
        (["TMaze", "env.corridor_length=1000"], 1001),
        (["TMaze-distractors"], 101),
        (["MemoryChain", "env.memory_length=500"], 501),
        (["RepeatFirst"], 51),
        (["RepeatFirst", "env.difficulty=hard"], 831),
        (["Autoencode", "env.difficulty=medium"], 207),
        (["CountRecall", "env.difficulty=hard"], 207),
        (["MemoryMaze", "env.size=11"], 2000),
        (["GridMemoryMaze", "env.size=13x13"], 3000),
        (["MemoryMaze-original"], 1000),
        (["RepeatPrevious"], 156),  # As measured.
        (["Concentration"], 208),
        (["EndlessTMaze"], 55),
        (["EndlessTMaze", "env.regime=uniform"], 0),
    ],
)
def test_a_task_that_names_a_length_is_staggered_over_it(task: list[str], steps: int) -> None:
    assert compose_config([f"env={task[0]}", *task[1:]]).steps_to_stagger == steps


def test_a_number_of_steps_takes_the_place_of_the_length_that_is_named() -> None:
    assert compose_config(["env=TMaze", "stagger_steps=101"]).steps_to_stagger == 101
    assert compose_config(["env=MemoryMaze", "stagger_steps=7"]).steps_to_stagger == 7
    with pytest.raises(ValueError, match="stagger_steps=-2 must be -1"):
        compose_config(["env=TMaze", "stagger_steps=-2"])
