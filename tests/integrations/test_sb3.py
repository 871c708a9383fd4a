"""The torso in sb3-contrib's RecurrentPPO: acting and learning agree; it saves, loads, learns."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

from mtxl_rl import TorsoConfig
from mtxl_rl.integrations.sb3 import CnnTorsoPolicy, MlpTorsoPolicy, MultiInputTorsoPolicy

TORSO = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, num_persistent=2)


class Recall(gymnasium.Env):
    """Shows a bit at the first of `length` steps and asks for it at the last."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    length = 12

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Draw the bit and show it."""
        super().reset(seed=seed, options=options)
        self.bit, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.bit - 1, 0], np.float32), {}

    def step(self, action: int) -> tuple:
        """Show when it is asked for; reward the last action."""
        self.t += 1
        is_last = self.t == self.length
        reward = float(2 * (action == self.bit) - 1) if is_last else 0.0
        shown = np.array([0, self.t == self.length - 1], np.float32)
        return shown, reward, is_last, False, {}


def agent_of(
    policy: type[MlpTorsoPolicy] = MlpTorsoPolicy,
    env: str | Callable[[], gymnasium.Env] = "CartPole-v1",
    num_steps: int = 32,
    torso: TorsoConfig = TORSO,
    **options: Any,  # noqa: ANN401
) -> RecurrentPPO:
    options.setdefault("policy_kwargs", {})["torso"] = torso
    options = {"batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu"} | options
    return RecurrentPPO(policy, make_vec_env(env, n_envs=4), n_steps=num_steps, **options)


@pytest.mark.parametrize(
    "critic",
    [{}, {"enable_critic_lstm": False}, {"enable_critic_lstm": False, "shared_lstm": True}],
    ids=["apart", "none", "shared"],
)
@pytest.mark.training
def test_learning_computes_what_acting_did(critic: dict[str, bool]) -> None:
    agent = agent_of(policy_kwargs=critic)
    _, callback = agent._setup_learn(128)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, 32)
    for part in agent.rollout_buffer.get(64):
        assert (part.episode_starts.sum() > 0).item()  # CartPole's random episodes last 20 steps
        value, log_prob, _ = agent.policy.evaluate_actions(
            part.observations, part.actions.flatten().long(), part.lstm_states, part.episode_starts
        )
        kept = part.mask > 1e-8
        torch.testing.assert_close(value.flatten()[kept], part.old_values[kept], atol=1e-5, rtol=0)
        torch.testing.assert_close(log_prob[kept], part.old_log_prob[kept], atol=1e-5, rtol=0)


@pytest.mark.training
def test_it_saves_loads_and_predicts_the_same(tmp_path: Path) -> None:
    agent = agent_of()
    agent.learn(128)
    agent.save(tmp_path / "agent.zip")
    agent.policy.save(tmp_path / "policy.pt")
    loaded = RecurrentPPO.load(tmp_path / "agent.zip", device="cpu")
    alone = MlpTorsoPolicy.load(tmp_path / "policy.pt", device="cpu")
    observations = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    for policy in (loaded.policy, alone):
        state, other = None, None
        for t, observation in enumerate(observations):
            start = np.array([t in (0, 5)])
            expected, state = agent.predict(observation, state, start, deterministic=True)
            action, other = policy.predict(observation, other, start, deterministic=True)
            assert action == expected
            np.testing.assert_array_equal(state[0], other[0])


def test_an_episode_start_forgets() -> None:
    agent = agent_of()
    observation = np.ones(4, np.float32)
    _, state = agent.predict(observation, None, np.array([True]))
    _, later = agent.predict(observation, state, np.array([False]))
    _, again = agent.predict(observation, later, np.array([True]))
    np.testing.assert_array_equal(again[0], state[0])
    assert (later[0] != state[0]).any()


def test_pictures_and_dicts() -> None:
    class Shown(gymnasium.ObservationWrapper):
        def __init__(self, space: gymnasium.Space) -> None:
            super().__init__(gymnasium.make("CartPole-v1"))
            self.observation_space = space

        def observation(self, observation: object) -> object:  # noqa: ARG002
            return self.observation_space.sample()

    picture = gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    both = gymnasium.spaces.Dict({"a": picture, "b": gymnasium.spaces.Discrete(3)})
    for policy, space in ((CnnTorsoPolicy, picture), (MultiInputTorsoPolicy, both)):
        agent = agent_of(policy, env=lambda space=space: Shown(space), num_steps=8, batch_size=32)
        agent.learn(32)
        assert agent.num_timesteps == 32


def test_options_of_the_lstm_are_refused() -> None:
    with pytest.raises(ValueError, match="lstm_hidden_size was given, but there is no LSTM here"):
        agent_of(policy_kwargs={"lstm_hidden_size": 32})


@pytest.mark.slow
def test_it_learns_what_its_window_no_longer_shows() -> None:
    """A bit 11 steps back, where one layer's window of 4 shows 4."""
    torso = TorsoConfig(width=32, num_layers=1, window_length=4, segment_length=4, num_persistent=2)
    results = {}
    for name in ("delta", "none"):
        agent = agent_of(
            env=Recall, torso=replace(torso, long_term=name), num_steps=48, batch_size=192,
            n_epochs=4, learning_rate=3e-3, gamma=0.9,
        )  # fmt: skip
        agent.learn(30_000)
        results[name] = np.mean([episode["r"] for episode in agent.ep_info_buffer])
    assert results["delta"] > 0.95
    assert results["none"] < 0.5
