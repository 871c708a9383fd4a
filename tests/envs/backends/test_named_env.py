"""Errors of an environment name the environment, and others' rows are not affected."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.envs.backends.custom_env import CustomEnvConfig
from mtxl_rl.envs.registry import make_vector_env


class Wrong(gymnasium.Env[Any, Any]):
    """Returns a value of its class in its third step."""

    def __init__(self, name: str = "", value: object = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.name, self.value = name, value
        self.num_steps = 0

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> Any:  # noqa: ANN401, ARG002, D102
        self.num_steps += 1
        values = {"observation": np.zeros(3, np.float32), "reward": 0.0}
        if self.num_steps == 3 and self.name == "error":
            raise KeyError(self.value)
        if self.num_steps == 3 and self.name:
            values[self.name] = self.value  # type: ignore[assignment]
        return values["observation"], values["reward"], False, False, {}


def play(name: str, value: object) -> tuple[Any, Any]:
    """Observation and reward after three steps, where the third of four environments is wrong."""
    indices = iter(range(4))

    def make() -> gymnasium.Env[Any, Any]:
        return Wrong(name, value) if next(indices) == 2 else Wrong()

    env = make_vector_env(CustomEnvConfig(), num_envs=4, seed=0, custom=make)
    env.reset()
    for _ in range(3):
        observation, reward = env.step(np.zeros(4, int))[:2]
    return observation, reward


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("observation", np.zeros(4, np.float32), r"an array of shape \(4,\) and dtype float32"),
        ("observation", np.zeros(1, np.float32), r"shape \(1,\)"),
        ("observation", np.array(["a", "b", "c"]), "dtype <U1"),
        ("observation", None, "a NoneType"),
        ("observation", {"x": 1}, r"a dict with the keys \['x'\]"),
        ("reward", None, "a NoneType"),
        ("reward", "1", "a str"),
        ("reward", np.zeros(2), r"shape \(2,\)"),
    ],
)
def test_a_value_of_another_form_names_the_environment(
    name: str, value: object, words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} of environment 2 is .*{words}.* after step 3"):
        play(name, value)


@pytest.mark.parametrize("name", ["observation", "reward"])
def test_a_number_that_overflows_when_it_is_squared_is_refused(name: str) -> None:
    value = np.full(3, 1e30, np.float32) if name == "observation" else 1e308
    with pytest.raises(ValueError, match=f"{name} of environment 2 is .* at step 3"):
        play(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("observation", [0.0, 0.5, 1.0]), ("observation", np.zeros(3)), ("reward", np.ones(1))],
)
def test_what_numpy_converts_is_accepted(name: str, value: object) -> None:
    observation, reward = play(name, value)
    expected = {"observation": np.zeros(3), "reward": 0.0} | {name: np.squeeze(value)}
    np.testing.assert_array_equal(observation[2], expected["observation"])
    assert reward.tolist() == [0, 0, expected["reward"], 0]


def test_an_exception_keeps_its_type_and_names_the_environment() -> None:
    with pytest.raises(KeyError) as raised:
        play("error", "boom")
    notes = ["environment 2 failed in step 3", "in step 3 of the environments"]
    assert raised.value.__notes__ == notes
