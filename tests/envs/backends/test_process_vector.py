import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import mtxl_rl.envs.backends.process_vector as process_vector
from mtxl_rl.envs.backends.process_vector import ProcessVectorEnv

# The workers cannot import this file; let its classes travel with the makers.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps; an episode has `length` of them. Some actions break it."""

    RAISE, SLEEP = 8, 9

    def __init__(self, length: int = 3) -> None:
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        inner = gymnasium.spaces.Dict({"count": gymnasium.spaces.Discrete(1000)})
        self.observation_space = gymnasium.spaces.Dict({"noise": box, "inner": inner})
        self.action_space = gymnasium.spaces.Discrete(10)
        self.length, self.count = length, 0

    def _obs(self) -> dict[str, Any]:
        return {"noise": self.np_random.normal(size=2), "inner": {"count": np.int64(self.count)}}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Counts from 0."""
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {"started": True} if options is None else options

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Counts one more."""
        if action == self.RAISE:
            raise KeyError("the key\nis lost")
        if action == self.SLEEP:
            time.sleep(60)
        self.count += 1
        info = {"odd": self.count, "name": "x"} if self.count % 2 else {}
        over = self.count == self.length
        return self._obs(), 0.1 * action, over and self.length == 3, over, info


class Saveable(Counter):
    """A counter that can be saved."""

    def get_state(self) -> Any:  # noqa: ANN401
        """All that the next step depends on."""
        return self.count, self.np_random.bit_generator.state

    def set_state(self, state: Any) -> None:  # noqa: ANN401
        """The reverse."""
        self.count, self.np_random.bit_generator.state = state


def pids_of(vector: ProcessVectorEnv) -> list[int]:
    return [worker.process.pid or 0 for worker in vector._workers]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead child of a dead parent may wait for init as a zombie.
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def is_deaf_to_ctrl_c_from_birth(pid: int) -> bool:
    """Whether SIGINT is blocked: a worker inherits that, so that none meets it while it imports."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    blocked = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))
    return bool(blocked >> (signal.SIGINT - 1) & 1)


@pytest.fixture
def vector() -> Iterator[ProcessVectorEnv]:
    made = ProcessVectorEnv([Counter, lambda: Counter(4), Counter], num_workers=2)
    yield made
    made.close()


CARTPOLES = [lambda: gymnasium.make("CartPole-v1")] * 3
COUNTERS = [Counter, lambda: Counter(4), Saveable]


@pytest.mark.parametrize("makers", [CARTPOLES, COUNTERS], ids=["CartPole", "Dict"])
def test_every_step_equals_gymnasiums_sync_vector_env(makers: list[Any]) -> None:
    sync = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    ours = ProcessVectorEnv(makers, num_workers=2)
    rng, num_ends = np.random.default_rng(0), 0
    try:
        assert ours.observation_space == sync.observation_space
        assert ours.action_space == sync.action_space
        assert ours.single_observation_space == sync.single_observation_space
        assert ours.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        np.testing.assert_equal(ours.reset(seed=5), sync.reset(seed=5))
        for _ in range(60):
            actions = rng.integers(0, 2, size=3)
            expected, got = sync.step(actions), ours.step(actions)
            assert ours.observation_space.contains(got[0])
            np.testing.assert_equal(got[0], expected[0])
            np.testing.assert_equal(got[1], expected[1].astype(np.float32))
            np.testing.assert_equal(got[2:], expected[2:])
            num_ends += int((got[2] | got[3]).sum())
        assert num_ends > 3
        np.testing.assert_equal(ours.reset(seed=[7, 1, 2]), sync.reset(seed=[7, 1, 2]))
    finally:
        ours.close()
        sync.close()


def test_what_a_step_returned_does_not_change_later(vector: ProcessVectorEnv) -> None:
    first = vector.reset(seed=0)[0]
    noise = first["noise"].copy()
    rewards = vector.step(np.array([1, 2, 3]))[1]
    vector.step(np.array([4, 5, 6]))
    np.testing.assert_equal(first["noise"], noise)
    np.testing.assert_equal(rewards, np.float32([0.1, 0.2, 0.3]))
    assert rewards.dtype == np.float32


def test_an_environments_exception_is_raised_with_its_message(vector: ProcessVectorEnv) -> None:
    vector.reset(seed=0)
    pids = pids_of(vector)
    with pytest.raises(RuntimeError) as caught:
        vector.step(np.array([0, 0, Counter.RAISE]))
    message = str(caught.value)
    assert message == r"environment 2 failed in step: KeyError: 'the key\nis lost'"
    assert any("Traceback" in note for note in caught.value.__notes__)
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match=r"step: the environments are closed"):
        vector.step(np.zeros(3, int))


def test_an_exception_in_making_an_environment_is_raised() -> None:
    def broken() -> Counter:
        raise ImportError("no such simulator")

    with pytest.raises(
        RuntimeError, match=r"^environment 1 failed in make: ImportError: no such sim"
    ):
        ProcessVectorEnv([Counter, broken], num_workers=1)


def test_a_killed_worker_is_one_sentence(vector: ProcessVectorEnv) -> None:
    vector.reset(seed=0)
    os.kill(pids_of(vector)[1], signal.SIGKILL)
    vector._workers[1].process.join()
    with pytest.raises(
        RuntimeError, match=r"^the worker process of environments 1 to 2 was killed by SIGKILL"
    ):
        vector.step(np.zeros(3, int))
    assert vector.closed


def test_a_worker_killed_in_the_middle_of_a_step_does_not_hang_the_parent() -> None:
    vector = ProcessVectorEnv([Counter, Counter], num_workers=2)
    vector.reset(seed=0)
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {pids_of(vector)[0]}"])
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="environment 0 was killed by SIGKILL"):
        vector.step(np.array([Counter.SLEEP, 0]))
    assert time.monotonic() - start < 10
    killer.wait()


def test_closing_twice_and_closing_a_busy_worker(
    vector: ProcessVectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_vector, "_SECONDS_TO_CLOSE", 0.2)
    vector.reset(seed=0)
    pids = pids_of(vector)
    vector._workers[0].send((99, "step", [Counter.SLEEP]))
    vector.close()
    vector.close()
    assert not any(is_alive(pid) for pid in pids)


def test_workers_ignore_ctrl_c_and_an_interrupted_step_can_be_followed(
    vector: ProcessVectorEnv,
) -> None:
    expected = vector.reset(seed=0)[0]
    for pid in pids_of(vector):
        os.kill(pid, signal.SIGINT)
    vector._call_number += 1  # a step that Ctrl-C cut off before the replies
    for worker, actions in zip(vector._workers, ([1], [1, 1]), strict=True):
        worker.send((vector._call_number, "step", actions))
    np.testing.assert_equal(vector.reset(seed=0)[0], expected)
    assert vector.step(np.zeros(3, int))[0]["inner"]["count"].tolist() == [1, 1, 1]


SCRIPT = """
import sys, os, signal
import gymnasium, numpy as np
from mtxl_rl.envs.backends.process_vector import ProcessVectorEnv

def make():
    return gymnasium.make("CartPole-v1")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    vector = ProcessVectorEnv([make] * 2, num_workers=2)
    vector.reset(seed=0)
    try:
        print(*(worker.process.pid for worker in vector._workers), flush=True)
        while True:
            vector.step(np.zeros(2, int))
    except KeyboardInterrupt:
        vector.step(np.zeros(2, int))
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_the_parents_death_end_the_workers_quietly(
    how: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_deaf_to_ctrl_c_from_birth(pid) for pid in pids)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    out, err = process.communicate(timeout=20)
    assert out == ("interrupted\n" if how == signal.SIGINT else "")
    assert err == ""
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_a_restored_state_goes_on_as_the_saved_one() -> None:
    vector = ProcessVectorEnv([Saveable, Saveable, Saveable], num_workers=2)
    try:
        assert vector.supports_state
        vector.reset(seed=0)
        actions = np.array([1, 2, 3])
        for _ in range(3):  # now all have ended, and reset at the next step
            vector.step(actions)
        state = vector.get_state()
        expected = [vector.step(actions) for _ in range(5)]
        vector.set_state(state)
        np.testing.assert_equal([vector.step(actions) for _ in range(5)], expected)
    finally:
        vector.close()


def test_masked_resets_start_these_episodes_and_leave_the_others(vector: ProcessVectorEnv) -> None:
    vector.reset(seed=0)
    for _ in range(3):
        over = vector.step(np.zeros(3, int))[2:4]
    assert (over[0] | over[1]).tolist() == [True, False, True]
    options = {"reset_mask": np.array([True, True, False]), "level": 3}
    observation, infos = vector.reset(options=options)
    assert observation["inner"]["count"].tolist() == [0, 0, 3]
    assert infos["_level"].tolist() == [True, True, False]
    # The third resets by itself; the first was reset, and goes on.
    assert vector.step(np.zeros(3, int))[0]["inner"]["count"].tolist() == [1, 1, 0]


def test_environments_without_state_say_so(vector: ProcessVectorEnv) -> None:
    assert not vector.supports_state
    with pytest.raises(RuntimeError, match="cannot be saved"):
        vector.get_state()
    with pytest.raises(ValueError, match="2 seeds were given for 3 environments"):
        vector.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask"):
        vector.reset(options={"reset_mask": np.ones(2, bool)})
    infos = vector.reset(options={"level": 3})[1]
    assert infos["level"].tolist() == [3, 3, 3]


def test_wrong_arguments_are_answered_with_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="num_workers=0 must be at least 1"):
        ProcessVectorEnv([Counter], num_workers=0)
    with pytest.raises(ValueError, match="env_makers is empty"):
        ProcessVectorEnv([])
    with pytest.raises(ValueError, match="'spawn' or 'forkserver'"):
        ProcessVectorEnv([Counter], context="fork")
    with pytest.raises(ValueError, match="must be a Box, Discrete"):
        process_vector._space_leaves(gymnasium.spaces.Text(3))


def test_environments_are_spread_evenly() -> None:
    assert process_vector._worker_bounds(5, num_workers=2) == [(0, 2), (2, 5)]
    assert process_vector._worker_bounds(2, num_workers=7) == [(0, 1), (1, 2)]
