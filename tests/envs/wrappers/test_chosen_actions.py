"""An agent that may take some of an environment's actions."""

import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.envs.backends.gymnasium_env import GymnasiumConfig
from mtxl_rl.envs.registry import make_vector_env


def test_chosen_actions_are_renumbered_from_0() -> None:
    # Acrobot pushes by -1, 0 and 1: two that are chosen in another order are those two.
    whole = make_vector_env(GymnasiumConfig(id="Acrobot-v1"), num_envs=2, seed=0)
    some = make_vector_env(GymnasiumConfig(id="Acrobot-v1", actions=[2, 0]), num_envs=2, seed=0)
    assert some.single_action_space == spaces.Discrete(2)
    assert some.action_space == spaces.MultiDiscrete([2, 2])
    np.testing.assert_array_equal(whole.reset()[0], some.reset()[0])
    for chosen in ([0, 1], [1, 1], [1, 0]):
        original = np.asarray([2, 0])[chosen]
        np.testing.assert_array_equal(whole.step(original)[0], some.step(np.asarray(chosen))[0])
    whole.close()
    some.close()


@pytest.mark.parametrize(
    ("env_id", "actions", "sentence"),
    [
        ("CartPole-v1", [0, 2], r"env.actions=\[0, 2\] must be different numbers from 0 to 1, e.g"),
        ("CartPole-v1", [1, 1], r"env.actions=\[1, 1\] must be different numbers"),
        ("Pendulum-v1", [0], r"chooses among discrete actions, but this environment has Box"),
    ],
)
def test_actions_that_are_not_the_environments_are_refused(
    env_id: str, actions: list[int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_vector_env(GymnasiumConfig(id=env_id, actions=actions), num_envs=1, seed=0)
