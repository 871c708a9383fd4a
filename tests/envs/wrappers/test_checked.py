"""The checks: what is refused at construction and while running, and with which words."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mtxl_rl.envs.tasks.tmaze import TMaze, TMazeConfig
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv, reset_mask

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
NUM_ENVS = 3


class Scripted(VectorEnv[Any, Any, Any]):
    """Returns what the test sets."""

    def __init__(
        self,
        observation_space: spaces.Space[Any] = BOX,
        action_space: spaces.Space[Any] | None = None,
        *,
        mode: Any = AutoresetMode.NEXT_STEP,  # noqa: ANN401
    ) -> None:
        self.num_envs = NUM_ENVS
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.single_observation_space = observation_space
        self.single_action_space = action_space or spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, NUM_ENVS)
        self.action_space = batch_space(self.single_action_space, NUM_ENVS)
        self.observations: Any = np.zeros((NUM_ENVS, 2), dtype=np.float32)
        self.rewards = np.zeros(NUM_ENVS)
        self.terminated = np.zeros(NUM_ENVS, dtype=np.bool_)

    def reset(
        self,
        *,
        seed: Any = None,  # noqa: ANN401, ARG002
        options: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> tuple[Any, dict[str, Any]]:
        """The observations that the test set."""
        return self.observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401, ARG002
        """What the test set."""
        truncated = np.zeros(NUM_ENVS, dtype=np.int32)
        return self.observations, self.rewards, self.terminated, truncated, {}


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, None])
def test_another_autoreset_mode_is_refused(mode: AutoresetMode | None) -> None:
    message = (
        rf"metadata\['autoreset_mode'\]={mode}.*; create the .*autoreset_mode=AutoresetMode.NEXT"
    )
    with pytest.raises(ValueError, match=message):
        CheckedVectorEnv(Scripted(mode=mode))


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "goal": spaces.Discrete(4)}),
    ],
    ids=str,
)
def test_covered_observation_spaces_pass(space: spaces.Space[Any]) -> None:
    CheckedVectorEnv(Scripted(space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([BOX]),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete(np.full((2, 2), 3)),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
    ],
    ids=str,
)
def test_other_observation_spaces_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"supported are Box.*gymnasium\.ObservationWrapper") as e:
        CheckedVectorEnv(Scripted(space))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_observations_without_a_number_are_refused(shape: tuple[int, ...]) -> None:
    empty = spaces.Box(0, 1, shape, np.float32)
    with pytest.raises(ValueError, match=r"'x' is Box.*, which holds no number"):
        CheckedVectorEnv(Scripted(spaces.Dict({"x": empty, "y": BOX})))
    with pytest.raises(ValueError, match="a Dict without entries"):
        CheckedVectorEnv(Scripted(spaces.Dict()))


def test_the_key_of_a_space_that_is_not_covered_is_named() -> None:
    nested = spaces.Dict({"ok": BOX, "inner": spaces.Dict({"x": BOX})})
    with pytest.raises(ValueError, match="observation space 'inner' is Dict"):
        CheckedVectorEnv(Scripted(nested))


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), BOX, spaces.Box(-1, 1, (2,), np.float64)],
    ids=str,
)
def test_covered_action_spaces_pass(space: spaces.Space[Any]) -> None:
    CheckedVectorEnv(Scripted(BOX, space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 9, (2,), np.int32),
        spaces.MultiBinary(3),
        spaces.Discrete(3, start=1),
        spaces.Dict({"a": BOX}),
    ],
    ids=str,
)
def test_other_action_spaces_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"action space is .*supported.*gymnasium\.ActionWrapper"):
        CheckedVectorEnv(Scripted(BOX, space))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_with_its_place(bad: float, dtype: type[Any]) -> None:
    inner = Scripted(spaces.Box(-np.inf, np.inf, (2,), dtype))
    env = CheckedVectorEnv(inner)
    env.reset()
    env.step(np.zeros(NUM_ENVS))
    inner.observations = np.zeros((NUM_ENVS, 2), dtype=dtype)
    inner.observations[1, 0] = bad
    with pytest.raises(ValueError, match=f"observation of environment 1 is {bad} at step 2; it"):
        env.step(np.zeros(NUM_ENVS))
    with pytest.raises(ValueError, match="observation of environment 1"):
        env.reset()


def test_a_number_that_is_not_finite_is_named_with_its_key() -> None:
    inner = Scripted(spaces.Dict({"count": spaces.Discrete(5), "speed": BOX}))
    inner.observations = {"count": np.zeros(NUM_ENVS, np.int64), "speed": np.full((3, 2), np.nan)}
    env = CheckedVectorEnv(inner)
    with pytest.raises(
        ValueError, match=r"observation\['speed'\] of environment 0 is nan at step 0"
    ):
        env.reset()


def test_a_reward_that_is_not_finite_is_refused() -> None:
    inner = Scripted()
    env = CheckedVectorEnv(inner)
    env.reset()
    inner.rewards[2] = np.nan
    with pytest.raises(ValueError, match="reward of environment 2 is nan at step 1; it must be"):
        env.step(np.zeros(NUM_ENVS))


def test_rewards_are_float32_and_flags_bool() -> None:
    env = CheckedVectorEnv(Scripted())
    env.reset()
    _, rewards, terminated, truncated, _ = env.step(np.zeros(NUM_ENVS))
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float32, np.bool_, np.bool_)


@pytest.mark.parametrize("fault", ["reward", "end"])
def test_a_reset_row_with_a_reward_or_an_end_is_refused(fault: str) -> None:
    inner = Scripted()
    env = CheckedVectorEnv(inner)
    env.reset()
    inner.terminated = np.array([False, True, False])
    env.step(np.zeros(NUM_ENVS))
    if fault == "reward":
        inner.terminated = np.zeros(NUM_ENVS, dtype=np.bool_)
        inner.rewards = np.ones(NUM_ENVS)
    with pytest.raises(ValueError, match="environment 1 returned a reward or an end at step 2"):
        env.step(np.zeros(NUM_ENVS))


def test_a_row_reset_by_hand_after_its_end_may_be_rewarded_immediately() -> None:
    inner = Scripted()
    env = CheckedVectorEnv(inner)
    env.reset()
    inner.terminated = np.array([False, True, False])
    env.step(np.zeros(NUM_ENVS))
    inner.terminated = np.zeros(NUM_ENVS, dtype=np.bool_)
    env.reset(options={"reset_mask": np.array([False, True, False])})
    inner.rewards = np.ones(NUM_ENVS)
    assert env.step(np.zeros(NUM_ENVS))[1].tolist() == [1, 1, 1]


def masked(size: int = 5) -> spaces.Dict:
    return spaces.Dict({"state": spaces.Discrete(3), "action_mask": spaces.MultiBinary(size)})


def with_mask(rows: list[list[int]]) -> dict[str, Any]:
    return {"state": np.zeros(NUM_ENVS, np.int64), "action_mask": np.array(rows, dtype=np.int8)}


def test_an_action_mask_must_allow_something_in_each_component() -> None:
    inner = Scripted(masked(), spaces.MultiDiscrete([2, 3]))
    env = CheckedVectorEnv(inner)
    inner.observations = with_mask([[1, 0, 0, 0, 1]] * NUM_ENVS)
    env.reset()
    inner.observations = with_mask([[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="environment 1 allows nothing for action component 1 at"):
        env.step(np.zeros((NUM_ENVS, 2)))


def test_an_action_mask_of_a_discrete_action_must_allow_something() -> None:
    inner = Scripted(masked(2))
    inner.observations = with_mask([[1, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match="of environment 2 allows nothing for action component 0"):
        CheckedVectorEnv(inner).reset()


@pytest.mark.parametrize(
    ("mask", "action"),
    [
        (spaces.MultiBinary(3), spaces.Discrete(2)),
        (spaces.MultiBinary(2), BOX),
        (spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_an_action_mask_that_does_not_fit_the_actions_is_refused(
    mask: spaces.Space[Any], action: spaces.Space[Any]
) -> None:
    with pytest.raises(ValueError, match="a mask is MultiBinary or an int8 or bool Box"):
        CheckedVectorEnv(Scripted(spaces.Dict({"action_mask": mask}), action))


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_an_action_mask_may_be_a_box(dtype: type) -> None:
    mask = spaces.Box(np.zeros(2, dtype), np.ones(2, dtype), dtype=dtype)
    CheckedVectorEnv(Scripted(spaces.Dict({"action_mask": mask})))


@pytest.mark.parametrize(
    "mask", [np.zeros(NUM_ENVS, dtype=np.bool_), np.ones(NUM_ENVS), np.ones(2, dtype=np.bool_)]
)
def test_a_reset_mask_of_no_use_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pass a bool array of shape \(3,\) with at least one"):
        reset_mask({"reset_mask": mask}, num_envs=NUM_ENVS)


def test_only_an_environment_with_both_methods_supports_state() -> None:
    assert CheckedVectorEnv(TMaze(TMazeConfig(corridor_length=3), num_envs=2)).supports_state
    assert not CheckedVectorEnv(Scripted()).supports_state


def test_a_state_restored_before_any_reset_can_be_stepped() -> None:
    source = CheckedVectorEnv(TMaze(TMazeConfig(corridor_length=3), num_envs=2))
    source.reset()
    target = CheckedVectorEnv(TMaze(TMazeConfig(corridor_length=3), num_envs=2))
    target.set_state(source.get_state())
    np.testing.assert_array_equal(target.step(np.zeros(2))[0], source.step(np.zeros(2))[0])
