"""The T-maze: its rules, its cues, its exact resume."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtxl_rl.envs.tmaze import TMaze, TMazeConfig

CUE_LEFT, CUE_RIGHT = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
JUNCTION, NOTHING = [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]


@pytest.mark.parametrize("corridor_length", [1, 2, 3, 4])
def test_every_sequence_of_actions_is_rewarded_by_its_last_one_only(corridor_length: int) -> None:
    sequences = np.array(list(itertools.product([0, 1], repeat=corridor_length + 1)))
    env = TMaze(len(sequences), corridor_length=corridor_length, seed=1)
    observations, _ = env.reset()
    cue = observations[:, :2].argmax(axis=1)
    assert set(map(tuple, observations.tolist())) == {tuple(CUE_LEFT), tuple(CUE_RIGHT)}
    for step in range(corridor_length):
        observations, rewards, terminated, truncated, infos = env.step(sequences[:, step])
        expected = JUNCTION if step == corridor_length - 1 else NOTHING
        assert observations.tolist() == [expected] * len(sequences)
        assert not rewards.any()
        assert not terminated.any()
        assert not truncated.any()
        assert infos == {}
    observations, rewards, terminated, truncated, infos = env.step(sequences[:, -1])
    is_right = sequences[:, -1] == cue
    assert observations.tolist() == [NOTHING] * len(sequences)
    assert rewards.tolist() == np.where(is_right, 1.0, -1.0).tolist()
    assert terminated.all()
    assert not truncated.any()
    assert infos["success"].tolist() == is_right.astype(float).tolist()
    assert infos["_success"].all()


def test_the_cue_comes_back_one_row_after_the_end() -> None:
    env = TMaze(3, corridor_length=2)
    env.reset()
    actions = np.zeros(3, dtype=np.int64)
    for _ in range(3):
        env.step(actions)
    observations, rewards, terminated, _, infos = env.step(actions)
    assert (observations[:, :2].sum(axis=1) == 1).all()
    assert not rewards.any()
    assert not terminated.any()
    assert infos == {}


def test_who_remembers_the_cue_gets_every_reward() -> None:
    env = TMaze(64, corridor_length=7, seed=5)
    observations, _ = env.reset()
    remembered = observations[:, 1].astype(np.int64)
    returns = np.zeros(64)
    successes: list[float] = []
    for _ in range(9 * 10):
        observations, rewards, _, _, infos = env.step(remembered)
        returns += rewards
        successes += infos["success"][infos["_success"]].tolist() if infos else []
        shows_cue = observations[:, :2].any(axis=1)
        remembered = np.where(shows_cue, observations[:, 1], remembered).astype(np.int64)
    assert (returns == 10).all()
    assert np.mean(successes) == 1


@pytest.mark.parametrize("policy", ["random", "left", "right"])
def test_who_does_not_remember_is_right_half_the_time(policy: str) -> None:
    env = TMaze(1000, corridor_length=1, seed=2)
    env.reset()
    rng = np.random.default_rng(0)
    successes: list[float] = []
    for _ in range(3 * 10):
        fixed = np.full(1000, policy == "right", dtype=np.int64)
        infos = env.step(rng.integers(2, size=1000) if policy == "random" else fixed)[4]
        successes += infos["success"].tolist() if infos else []
    # Five standard deviations of the mean of 10,000 coin flips.
    assert np.mean(successes) == pytest.approx(0.5, abs=0.025)


def test_a_partial_reset_starts_only_the_rows_asked_for() -> None:
    env = TMaze(4, corridor_length=3, seed=0)
    env.reset()
    actions = np.zeros(4, dtype=np.int64)
    env.step(actions)
    observations, _ = env.reset(options={"reset_mask": np.array([True, False, False, True])})
    assert observations[:, :2].sum(axis=1).tolist() == [1, 0, 0, 1]
    steps = [env.step(actions) for _ in range(4)]
    assert [step[2].tolist() for step in steps] == [
        [False] * 4,
        [False] * 4,
        [False, True, True, False],
        [True, False, False, True],
    ]
    assert steps[2][4]["_success"].tolist() == [False, True, True, False]


def test_a_list_of_seeds_seeds_too() -> None:
    env = TMaze(64, corridor_length=3)
    first, _ = env.reset(seed=list(range(64)))
    second, _ = env.reset(seed=list(range(1, 65)))
    again, _ = env.reset(seed=list(range(64)))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_a_reset_without_a_seed_draws_new_cues() -> None:
    env = TMaze(64, corridor_length=3, seed=0)
    assert (env.reset()[0] != env.reset()[0]).any()


class OneCorridor:
    """The rules once more, for one environment and without arrays."""

    def __init__(self, corridor_length: int) -> None:
        self.corridor_length = corridor_length
        self.is_over = True
        self.step_index = 0

    def start(self) -> None:
        """The cue is shown."""
        self.is_over, self.step_index = False, 0

    def step(self, action: int, *, cue: int) -> tuple[bool, float, bool]:
        """Whether the cue is shown next, the reward and whether it ends."""
        if self.is_over:
            self.start()
            return True, 0.0, False
        self.is_over = self.step_index == self.corridor_length
        self.step_index += 1
        reward = 0.0 if not self.is_over else (1.0 if action == cue else -1.0)
        return False, reward, self.is_over


@given(
    corridor_length=st.integers(1, 6),
    num_envs=st.integers(1, 4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_the_batch_equals_single_corridors(
    corridor_length: int, num_envs: int, seed: int, data: st.DataObject
) -> None:
    env = TMaze(num_envs, corridor_length=corridor_length, seed=seed)
    corridors = [OneCorridor(corridor_length) for _ in range(num_envs)]
    observations, _ = env.reset()
    cue = observations[:, 1].astype(int)
    for corridor in corridors:
        corridor.start()
    rows = st.lists(st.integers(0, 1), min_size=num_envs, max_size=num_envs)
    for _ in range(data.draw(st.integers(1, 20))):
        mask = np.array(data.draw(rows), dtype=np.bool_)
        if data.draw(st.booleans()) and mask.any():
            observations, _ = env.reset(options={"reset_mask": mask})
            for index in np.flatnonzero(mask):
                corridors[index].start()
            cue = np.where(mask, observations[:, 1], cue).astype(int)
        actions = np.array(data.draw(rows))
        observations, rewards, terminated, _, _ = env.step(actions)
        expected = [
            corridor.step(int(action), cue=int(one))
            for corridor, action, one in zip(corridors, actions, cue, strict=True)
        ]
        assert observations[:, :2].any(axis=1).tolist() == [shown for shown, _, _ in expected]
        assert rewards.tolist() == [reward for _, reward, _ in expected]
        assert terminated.tolist() == [ended for _, _, ended in expected]
        at_junction = [c.step_index == corridor_length and not c.is_over for c in corridors]
        assert (observations[:, 2] == 1).tolist() == at_junction
        cue = np.where(observations[:, :2].any(axis=1), observations[:, 1], cue).astype(int)


@given(num_before=st.integers(0, 12), corridor_length=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_state_can_be_taken_anywhere(num_before: int, corridor_length: int, seed: int) -> None:
    env = TMaze(8, corridor_length=corridor_length, seed=seed)
    env.reset()
    actions = np.arange(8) % 2
    for _ in range(num_before):
        env.step(actions)
    state = env.get_state()
    expected = [env.step(actions) for _ in range(15)]
    restored = TMaze(8, corridor_length=corridor_length, seed=seed + 1)
    restored.set_state(state)
    for step in expected:
        for ours, theirs in zip(restored.step(actions)[:4], step[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_state_is_plain_and_a_copy() -> None:
    env = TMaze(2, corridor_length=3)
    env.reset()
    state = env.get_state()
    assert all(isinstance(value, np.ndarray | str | int) for value in state.values())
    assert json.loads(str(state["generator"]))["bit_generator"] == "PCG64"
    env.step(np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(np.asarray(state["decision"]), [0, 0])
    env.set_state(state)
    env.step(np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(np.asarray(state["decision"]), [0, 0])


def test_a_state_of_another_maze_is_refused() -> None:
    state = TMaze(2, corridor_length=3).get_state()
    with pytest.raises(ValueError, match=r"\(3, 2\) and this one \(4, 2\); make this one like"):
        TMaze(2, corridor_length=4).set_state(state)


@pytest.mark.parametrize("actions", [[0, 2], [0, -1], [0], [[0, 1]]])
def test_illegal_actions_are_refused(actions: list[int]) -> None:
    env = TMaze(2, corridor_length=3)
    env.reset()
    with pytest.raises(ValueError, match=r"are not legal; give an array of shape \(2,\)"):
        env.step(np.array(actions))


def test_a_corridor_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env.corridor_length=0 must be at least 1, e.g. env"):
        TMazeConfig(corridor_length=0)
    with pytest.raises(ValueError, match="must be at least 1"):
        TMaze(2, corridor_length=-1)


def test_unknown_reset_options_and_seeds_of_another_count_are_refused() -> None:
    env = TMaze(2, corridor_length=3)
    with pytest.raises(ValueError, match=r"\['maze'\] are unknown; TMaze takes reset_mask only"):
        env.reset(options={"maze": 1})
    with pytest.raises(ValueError, match="got 3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])
