"""MortarMayhem's extra observation; its rules are tested against the original."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtxl_rl.envs.tasks.mortar_mayhem import MortarMayhem, MortarMayhemConfig
from mtxl_rl.envs.tasks.walker import FORWARD, LEFT, RIGHT


@pytest.mark.parametrize("view", ["symbolic", "image"])
def test_who_walks_along_the_vector_carries_out_all_commands(view: str) -> None:
    config = MortarMayhemConfig(view=view, extra_observations=True)
    env = MortarMayhem(config, num_envs=32, seed=0)
    plain = MortarMayhem(MortarMayhemConfig(view=view), num_envs=32, seed=0)
    observation: dict[str, NDArray[Any]] = env.reset()[0]  # type: ignore[assignment]
    views = [plain.reset()[0]]
    returns = np.zeros(32)
    for _ in range(config.describe().horizon):
        np.testing.assert_array_equal(observation["view"], views[-1])
        assert env.single_observation_space.contains({k: v[0] for k, v in observation.items()})
        right, ahead = observation["target_vec"].T
        turn = np.where(right > 0, RIGHT, np.where((right < 0) | (ahead < 0), LEFT, 0))
        actions = np.where(ahead > 0, FORWARD, turn)
        observation, rewards, terminated, _, infos = env.step(actions)  # type: ignore[assignment]
        views.append(plain.step(actions)[0])
        returns += rewards
    assert terminated.all()
    np.testing.assert_array_equal(infos["success"], 1)
    np.testing.assert_allclose(returns, 1, rtol=1e-5)
