"""The T-maze: its rules, its cues, its exact resume."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtxl_rl.envs.tasks.tmaze import ActiveTMaze, ActiveTMazeConfig, TMaze, TMazeConfig


def make(num_envs: int, *, corridor_length: int, seed: int = 0, num_distractors: int = 0) -> TMaze:
    config = TMazeConfig(corridor_length=corridor_length, num_distractors=num_distractors)
    return TMaze(config, num_envs=num_envs, seed=seed)


CUE_LEFT, CUE_RIGHT = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
JUNCTION, NOTHING = [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]


@pytest.mark.parametrize("corridor_length", [1, 2, 3, 4])
def test_every_sequence_of_actions_is_rewarded_by_its_last_one_only(corridor_length: int) -> None:
    sequences = np.array(list(itertools.product([0, 1], repeat=corridor_length + 1)))
    env = make(len(sequences), corridor_length=corridor_length, seed=1)
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
    env = make(3, corridor_length=2)
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
    env = make(64, corridor_length=7, seed=5)
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
    env = make(1000, corridor_length=1, seed=2)
    env.reset()
    rng = np.random.default_rng(0)
    successes: list[float] = []
    for _ in range(3 * 10):
        fixed = np.full(1000, policy == "right", dtype=np.int64)
        infos = env.step(rng.integers(2, size=1000) if policy == "random" else fixed)[4]
        successes += infos["success"].tolist() if infos else []
    # Five standard deviations of the mean of 10,000 coin flips.
    assert np.mean(successes) == pytest.approx(0.5, abs=0.025)


def test_a_partial_reset_starts_only_the_rows_of_its_mask() -> None:
    env = make(4, corridor_length=3, seed=0)
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
    env = make(64, corridor_length=3)
    first, _ = env.reset(seed=list(range(64)))
    second, _ = env.reset(seed=list(range(1, 65)))
    again, _ = env.reset(seed=list(range(64)))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_a_reset_without_a_seed_draws_new_cues() -> None:
    env = make(64, corridor_length=3, seed=0)
    assert (env.reset()[0] != env.reset()[0]).any()


class OneCorridor:
    """The rules once more, for one environment and without arrays."""

    def __init__(self, corridor_length: int) -> None:
        self.corridor_length = corridor_length
        self.is_reset_row = True
        self.step_index = 0

    def start(self) -> None:
        """The cue is shown."""
        self.is_reset_row, self.step_index = False, 0

    def step(self, action: int, *, cue: int) -> tuple[bool, float, bool]:
        """Whether the cue is shown next, the reward and whether it ends."""
        if self.is_reset_row:
            self.start()
            return True, 0.0, False
        self.is_reset_row = self.step_index == self.corridor_length
        self.step_index += 1
        reward = 0.0 if not self.is_reset_row else (1.0 if action == cue else -1.0)
        return False, reward, self.is_reset_row


@settings(max_examples=25)
@given(
    corridor_length=st.integers(1, 6),
    num_envs=st.integers(1, 4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_the_batch_equals_single_corridors(
    corridor_length: int, num_envs: int, seed: int, data: st.DataObject
) -> None:
    env = make(num_envs, corridor_length=corridor_length, seed=seed)
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
            corridor.step(int(action), cue=int(corridor_cue))
            for corridor, action, corridor_cue in zip(corridors, actions, cue, strict=True)
        ]
        assert observations[:, :2].any(axis=1).tolist() == [shown for shown, _, _ in expected]
        assert rewards.tolist() == [reward for _, reward, _ in expected]
        assert terminated.tolist() == [ended for _, _, ended in expected]
        at_junction = [c.step_index == corridor_length and not c.is_reset_row for c in corridors]
        assert (observations[:, 2] == 1).tolist() == at_junction
        cue = np.where(observations[:, :2].any(axis=1), observations[:, 1], cue).astype(int)


@settings(max_examples=25)
@given(num_before=st.integers(0, 12), corridor_length=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_state_can_be_taken_anywhere(num_before: int, corridor_length: int, seed: int) -> None:
    env = make(8, corridor_length=corridor_length, seed=seed)
    env.reset()
    actions = np.arange(8) % 2
    for _ in range(num_before):
        env.step(actions)
    state = env.get_state()
    expected = [env.step(actions) for _ in range(15)]
    restored = make(8, corridor_length=corridor_length, seed=seed + 1)
    restored.set_state(state)
    for step in expected:
        for ours, original in zip(restored.step(actions)[:4], step[:4], strict=True):
            np.testing.assert_array_equal(ours, original)


def test_a_corridor_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env.corridor_length=0 must be at least 1, e.g. env"):
        TMazeConfig(corridor_length=0)


def test_distractors_are_fair_bits_drawn_anew_and_the_rest_is_the_plain_maze() -> None:
    plain, noisy = make(64, corridor_length=9), make(64, corridor_length=9, num_distractors=5)
    seen = []
    actions = np.zeros(64, dtype=np.int64)
    ours, noisy_ones = plain.reset()[0], noisy.reset()[0]
    for _ in range(9):
        seen.append(noisy_ones[:, 3:])
        ours, noisy_ones = plain.step(actions)[0], noisy.step(actions)[0]
        np.testing.assert_array_equal(ours, noisy_ones[:, :3])
    bits = np.stack(seen)
    assert set(np.unique(bits)) == {0, 1}
    # Five standard deviations of the mean of 2,880 coin flips.
    assert bits.mean() == pytest.approx(0.5, abs=0.047)
    assert (bits[1:] != bits[:-1]).mean() == pytest.approx(0.5, abs=0.05)


def test_the_active_maze_pays_who_fetches_the_cue_first() -> None:
    env = ActiveTMaze(ActiveTMazeConfig(corridor_length=5), num_envs=200, seed=3)
    observations, _ = env.reset()
    assert observations.tolist() == [[0, 0, 0, 1]] * 200
    observations = env.step(np.full(200, 3))[0]
    assert (observations[:, :2].sum(axis=1) == 1).all()
    turn = observations[:, 1].astype(np.int64)
    for cell in range(6):
        observations, rewards, terminated, truncated, _ = env.step(np.full(200, 2))
        assert observations.tolist() == [[0, 0, cell == 5, cell == 0]] * 200
        assert not rewards.any()
        assert not terminated.any()
        assert not truncated.any()
    _, rewards, terminated, _, infos = env.step(turn)
    assert (rewards == 1).all()
    assert terminated.all()
    assert (infos["success"] == 1).all()


def test_the_active_maze_gives_nothing_on_average_to_who_goes_straight() -> None:
    env = ActiveTMaze(ActiveTMazeConfig(corridor_length=1), num_envs=4000, seed=0)
    env.reset()
    env.step(np.full(4000, 2))
    rewards = env.step(np.zeros(4000, dtype=np.int64))[1]
    assert set(rewards.tolist()) == {1, -1}
    assert rewards.mean() == pytest.approx(0, abs=0.08)


def test_the_active_maze_ends_with_the_time() -> None:
    env = ActiveTMaze(ActiveTMazeConfig(corridor_length=2), num_envs=1)
    env.reset()
    ends = [env.step(np.array([3])) for _ in range(10)]
    assert [bool(step[3][0]) for step in ends] == [False] * 9 + [True]
    assert not any(step[2][0] for step in ends)
