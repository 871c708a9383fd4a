"""Acting: environments in groups, and how those in step come to stand apart."""

import numpy as np
import pytest
import torch

from mtxl_rl.agents.collector import Actor, Stagger, observation_shapes
from mtxl_rl.build import build_policy
from mtxl_rl.config import compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.train import Run


def staggered(num_steps: int, *, num_envs: int = 8) -> Actor:
    config = compose_config(["env=RepeatFirst", "env.difficulty=easy", "model=tiny"])
    env = make_vector_env(config.env, num_envs=num_envs, seed=3)
    policy = build_policy(config, env)
    actor = Actor(env, policy, shapes=observation_shapes(env.single_observation_space, policy))
    actor.reset(seed=None, stagger=Stagger.over(num_steps, num_envs))
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


def ends_of_a_run(*options: str) -> list[int]:
    """How many episodes of 24 steps end in each of 25 steps, and that no part of one is counted."""
    config = compose_config([
        "env=MemoryMaze", "env.episode_length=24", "model=tiny", "num_envs=8", "device=cpu",
        "torso.segment_length=4", "ppo.rollout_length=16", "ppo.bptt_segments=4",
        *options,
    ])  # fmt: skip
    run = Run(config, EnvGroups(config.env, num_envs=8, num_groups=config.env_groups, seed=5))
    run.start(seed=None)
    ends = [0] * 50
    for actor in run.collector.actors:
        action = torch.zeros(actor.env.num_envs, 1, dtype=torch.long)
        for t in range(50):
            ends[t] += int(actor.step(action)[1].sum())
        assert actor.ended
        assert {episode["length"] for episode in actor.ended} == {24}
    run.env.close()
    return ends[:25]


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_run_spreads_a_task_that_names_one_length_for_all_episodes(groups: int) -> None:
    together = f"env_groups={groups}"
    spread = ends_of_a_run(together)
    assert max(spread) <= 2
    assert sum(spread) >= 8
    assert max(ends_of_a_run(together, "stagger_steps=0")) == 8


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        (["ColorCubes"], 0),  # It names none: whoever takes a wrong cube ends early.
        (["TMaze"], 0),  # Rollouts of 128 steps show all of its 101.
        (["TMaze", "env.corridor_length=127"], 0),
        (["TMaze", "env.corridor_length=128"], 129),
        (["TMaze", "env.corridor_length=1000"], 1001),
        (["TMaze-distractors", "ppo.rollout_length=64", "ppo.bptt_segments=4"], 101),
        (["MemoryChain"], 0),
        (["MemoryChain", "env.memory_length=500"], 501),
        (["RepeatFirst"], 0),
        (["RepeatFirst", "env.difficulty=hard"], 831),
        (["Autoencode", "env.difficulty=medium"], 207),
        (["CountRecall", "env.difficulty=hard"], 207),
        (["MemoryMaze", "env.size=11"], 2000),
        (["GridMemoryMaze", "env.size=13x13"], 3000),
        (["MemoryMaze-original"], 1000),
        (["RepeatPrevious"], 156),  # As measured.
        (["Concentration"], 208),
    ],
)
def test_who_names_a_length_is_spread_where_rollouts_are_shorter(
    task: list[str], steps: int
) -> None:
    assert compose_config([f"env={task[0]}", *task[1:]]).steps_to_stagger == steps


def test_a_number_of_steps_takes_the_place_of_the_length_that_is_named() -> None:
    assert compose_config(["env=TMaze", "stagger_steps=101"]).steps_to_stagger == 101
    assert compose_config(["env=MemoryMaze", "stagger_steps=7"]).steps_to_stagger == 7
    with pytest.raises(ValueError, match="stagger_steps=-2 must be -1"):
        compose_config(["env=TMaze", "stagger_steps=-2"])


def grouped(task: list[str], num_groups: int) -> Run:
    config = compose_config([
        *task, "model=tiny", "num_envs=4", "device=cpu", f"env_groups={num_groups}",
        "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=32",
        "ppo.bptt_segments=4",
    ])  # fmt: skip
    env = EnvGroups(config.env, num_envs=4, num_groups=config.env_groups, seed=5)
    run = Run(config, env)
    run.collector.reset(seed=None)
    return run


@pytest.mark.parametrize(
    "task",
    [["env=TMaze", "env.corridor_length=9"], ["env=MemoryMaze", "env.episode_length=20"]],
    ids=["TMaze", "MemoryMaze"],
)
@pytest.mark.parametrize("num_groups", [2, 4])
def test_groups_record_what_their_environments_give(task: list[str], num_groups: int) -> None:
    run = grouped(task, num_groups)
    size = 4 // num_groups
    rollout = run.collector.rollout
    rows = [slice(first, first + size) for first in range(0, 4, size)]
    envs = [make_vector_env(run.config.env, num_envs=size, seed=5 + one.start) for one in rows]
    seen = [env.reset()[0] for env in envs]
    for _ in range(2):
        run.collector.collect()
        for t in range(32):
            for i, (env, one) in enumerate(zip(envs, rows, strict=True)):
                np.testing.assert_array_equal(rollout.observation["obs"][one, t].numpy(), seen[i])
                action = run.policy.action_head.to_env(rollout.action[one, t + 1])
                seen[i], reward, terminated, truncated, _ = env.step(action)
                np.testing.assert_array_equal(rollout.reward[one, t + 1].numpy(), reward)
                np.testing.assert_array_equal(rollout.terminated[one, t].numpy(), terminated)
                if t + 1 < 32:
                    goes_on = ~(terminated | truncated)
                    np.testing.assert_array_equal(rollout.valid[one, t + 1].numpy(), goes_on)
    for env in [*envs, run.env]:
        env.close()


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_policy_that_asks_is_shown_each_steps_number(num_groups: int) -> None:
    run = grouped(["env=TMaze", "env.corridor_length=9", "policy.episode_step=true"], num_groups)
    rollout, before = run.collector.rollout, None
    for _ in range(3):
        assert run.iterate()["ppo/ratio_deviation"] < 1e-5
        for t in range(32):
            step = rollout.observation["episode_step"][:, t]
            follows = torch.zeros(4, dtype=torch.long) if before is None else before + 1
            assert torch.equal(step, torch.where(rollout.is_first[:, t], 0, follows))
            # The last of an episode is the observation that its last action led to.
            assert (step[~rollout.valid[:, t]] == 10).all()
            before = step.clone()
    assert not bool(rollout.valid.all())
    run.env.close()


def test_what_groups_collect_is_what_the_learner_computes() -> None:
    run = grouped(["env=TMaze", "env.corridor_length=9"], 2)
    for _ in range(3):
        assert run.iterate()["ppo/ratio_deviation"] < 1e-5
    run.env.close()


def test_one_group_goes_on_as_two() -> None:
    # What the policy carries does not depend on the groups, so a state of one fits the other.
    one, two = grouped(["env=TMaze"], 1), grouped(["env=TMaze"], 2)
    one.collector.collect()
    two.collector.load_state_dict(one.collector.state_dict())
    again = two.collector.state_dict()
    for name, field in one.collector.state_dict()["actor"].items():
        if name != "observation":
            torch.testing.assert_close(again["actor"][name], field, rtol=0, atol=0)
    for run in (one, two):
        run.env.close()


@pytest.mark.parametrize(("saved", "there"), [(1, 2), (2, 1)])
def test_environments_saved_in_other_groups_are_refused(saved: int, there: int) -> None:
    one, other = grouped(["env=TMaze"], saved), grouped(["env=TMaze"], there)
    message = f"is of {saved} groups of environments, and there are {there}; go on with env_groups"
    with pytest.raises(ValueError, match=message):
        other.env.set_state(one.env.get_state())
    for run in (one, other):
        run.env.close()


def test_an_error_in_a_group_that_steps_in_a_thread_is_told() -> None:
    run = grouped(["env=TMaze"], 2)
    run.env.groups[1].close()
    with pytest.raises(ValueError, match=r"step\(\) came before the first reset"):
        run.collector.collect()
    run.env.close()


def test_groups_that_cannot_be_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="env_groups=3 must divide num_envs=32; try env_groups=2"):
        compose_config(["env=TMaze", "env_groups=3"])
