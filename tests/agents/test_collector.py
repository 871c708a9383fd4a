"""Acting: rollouts hold what the environments returned."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch

from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.training.run import Run


@contextmanager
def small_run(task: list[str], *options: str) -> Iterator[Run]:
    config = compose_config([
        *task, "model=tiny", "num_envs=4", "device=cpu", "torso.window_length=4",
        "torso.segment_length=4", "ppo.rollout_length=32", "ppo.bptt_segments=4",
        "compile=false", *options,
    ])  # fmt: skip
    with closing(make_vector_env(config.env, num_envs=4, seed=5)) as env:
        yield Run(config, env)


@pytest.mark.parametrize(
    "task",
    [["env=TMaze", "env.corridor_length=9"], ["env=MemoryMaze", "env.episode_length=20"]],
    ids=["TMaze", "MemoryMaze"],
)
@pytest.mark.training
def test_a_rollout_holds_what_the_environments_returned(task: list[str]) -> None:
    with (
        small_run(task) as run,
        closing(make_vector_env(run.config.env, num_envs=4, seed=5)) as env,
    ):
        run.collector.reset(seed=None)
        rollout = run.collector.rollout
        observation, _ = env.reset()
        ended = np.zeros(4, dtype=bool)
        for _ in range(2):
            run.collector.collect()
            for t in range(32):
                np.testing.assert_array_equal(rollout.observation["obs"][:, t].numpy(), observation)
                np.testing.assert_array_equal(rollout.valid[:, t].numpy(), ~ended)
                action = run.policy.action_head.to_env(rollout.action[:, t + 1])
                observation, reward, terminated, truncated, _ = env.step(action)
                np.testing.assert_array_equal(rollout.reward[:, t + 1].numpy(), reward)
                np.testing.assert_array_equal(rollout.terminated[:, t].numpy(), terminated)
                ended = terminated | truncated


@pytest.mark.training
def test_the_policy_sees_each_steps_number_if_it_has_that_input() -> None:
    task = ["env=TMaze", "env.corridor_length=9"]
    with small_run(task, "policy.episode_step=true") as run:
        run.collector.reset(seed=None)
        rollout, previous = run.collector.rollout, None
        for _ in range(3):
            assert run.iterate()["losses/ratio_deviation"] < 1e-5
            for t in range(32):
                step = rollout.observation["episode_step"][:, t]
                expected = torch.zeros(4, dtype=torch.long) if previous is None else previous + 1
                assert torch.equal(step, torch.where(rollout.is_first[:, t], 0, expected))
                # The reset row shows the observation that the episode's last action led to.
                assert (step[~rollout.valid[:, t]] == 10).all()
                previous = step.clone()
        assert not bool(rollout.valid.all())


def test_statistics_are_those_of_whole_episodes() -> None:
    with small_run(["env=TMaze", "env.corridor_length=9"]) as run:
        run.collector.reset(seed=None)
        rollout, episodes = run.collector.collect()
        assert {episode.length for episode in episodes} == {10}
        ends = (~rollout.valid).nonzero().tolist()
        for env, t in ends:
            expected = rollout.reward[env, t - 9 : t + 1].sum()
            returns = [episode.episode_return for episode in episodes if episode.env == env]
            assert returns[0] == pytest.approx(float(expected))
            episodes.remove(next(episode for episode in episodes if episode.env == env))


@pytest.mark.training
def test_the_training_reward_is_learned_from_and_not_shown_to_the_policy() -> None:
    task = ["env=MemoryMaze", "env.progress_reward=0.1", "env.episode_length=16"]
    with small_run(task, "stagger_steps=0", "env.textures=procedural") as run:
        run.start(seed=None)
        rollout, episodes = run.collector.collect()
        assert set(rollout.reward.unique().tolist()) <= {0.0, 1.0}
        assert rollout.training_reward.std() > 0
        assert (rollout.training_reward - rollout.reward[:, 1:]).abs().max() < 0.05
        assert {episode.episode_return % 1 for episode in episodes} == {0.0}
        before = run.agent._targets(rollout).value
        rollout.training_reward += 1
        assert not torch.equal(run.agent._targets(rollout).value, before)


def test_an_environment_without_a_training_reward_teaches_its_reward() -> None:
    with small_run(["env=RepeatFirst"]) as run:
        run.start(seed=None)
        rollout, _ = run.collector.collect()
        assert torch.equal(rollout.training_reward, rollout.reward[:, 1:])
