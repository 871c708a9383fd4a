"""Environments in worker processes: equal to SyncVectorEnv, and named failures."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
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
        """Start counting at 0."""
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {"started": True} if options is None else options

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Add one to the count."""
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


class Misshapen(Counter):
    """Returns an observation of another shape than its space after the reset."""

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Append a number."""
        observation, *rest = super().step(action)
        return {**observation, "noise": np.zeros(3)}, *rest  # type: ignore[return-value]


class ReportsSignals(Counter):
    """Holds in its metadata whether Ctrl-C was blocked where it was created."""

    def __init__(self) -> None:
        super().__init__()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.metadata = {"is_sigint_blocked": signal.SIGINT in blocked}


def processes_of(vector: ProcessVectorEnv) -> list[BaseProcess]:
    return [worker.process for worker in vector._workers]


@pytest.fixture
def vector() -> Iterator[ProcessVectorEnv]:
    vector_env = ProcessVectorEnv([Counter, lambda: Counter(4), Counter], num_workers=2)
    yield vector_env
    vector_env.close()


@pytest.fixture(scope="module")
def shared_vector() -> Iterator[ProcessVectorEnv]:
    """For tests that neither close the vector nor break a worker."""
    vector_env = ProcessVectorEnv([Counter, lambda: Counter(4), Counter], num_workers=2)
    yield vector_env
    vector_env.close()


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


def test_what_a_step_returned_does_not_change_later(shared_vector: ProcessVectorEnv) -> None:
    first = shared_vector.reset(seed=0)[0]
    noise = first["noise"].copy()
    rewards = shared_vector.step(np.array([1, 2, 3]))[1]
    shared_vector.step(np.array([4, 5, 6]))
    np.testing.assert_equal(first["noise"], noise)
    np.testing.assert_equal(rewards, np.float32([0.1, 0.2, 0.3]))
    assert rewards.dtype == np.float32


def test_an_environments_exception_is_raised_with_its_message(vector: ProcessVectorEnv) -> None:
    vector.reset(seed=0)
    processes = processes_of(vector)
    with pytest.raises(RuntimeError) as caught:
        vector.step(np.array([0, 0, Counter.RAISE]))
    message = str(caught.value)
    assert message == r"environment 2 failed in step: KeyError: 'the key\nis lost'"
    assert any("Traceback" in note for note in caught.value.__notes__)
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match=r"step: the environments are closed"):
        vector.step(np.zeros(3, int))


def test_an_exception_in_making_an_environment_is_raised() -> None:
    def broken() -> Counter:
        raise ImportError("no such simulator")

    with pytest.raises(
        RuntimeError, match=r"^environment 1 failed in make: ImportError: no such sim"
    ):
        ProcessVectorEnv([Counter, broken], num_workers=1)


def test_an_observation_of_another_shape_is_refused() -> None:
    vector = ProcessVectorEnv([Misshapen], num_workers=1)
    vector.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"does not fit Dict.*return observations of the decl"):
        vector.step(np.zeros(1, int))
    assert vector.closed


@pytest.mark.parametrize("is_stepping", [False, True])
def test_a_killed_worker_is_named(*, is_stepping: bool, vector: ProcessVectorEnv) -> None:
    vector.reset(seed=0)
    process = processes_of(vector)[1]
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    if not is_stepping:
        process.join()
    with pytest.raises(
        RuntimeError, match=r"^the worker process of environments 1 to 2 was killed by SIGKILL"
    ):
        vector.step(np.array([0, Counter.SLEEP, 0]))
    assert vector.closed


def test_a_worker_that_hangs_is_named_and_killed(
    vector: ProcessVectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_vector, "_SECONDS_TO_CLOSE", 0.2)
    vector.reset(seed=0)
    processes = processes_of(vector)
    vector.timeout_seconds = 0.2
    with pytest.raises(RuntimeError, match="of environment 0 did not reply to step in time"):
        vector.step(np.array([Counter.SLEEP, 0, 0]))
    vector.close()
    assert not any(process.is_alive() for process in processes)


def test_workers_ignore_ctrl_c_from_their_start() -> None:
    vector = ProcessVectorEnv([ReportsSignals], num_workers=1)
    try:
        assert vector.metadata["is_sigint_blocked"]
        vector.reset(seed=0)
        os.kill(processes_of(vector)[0].pid or 0, signal.SIGINT)
        assert vector.step(np.zeros(1, int))[0]["inner"]["count"].tolist() == [1]
    finally:
        vector.close()


def test_ctrl_c_during_a_step_closes_the_vector(
    vector: ProcessVectorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    vector.reset(seed=0)
    processes = processes_of(vector)
    monkeypatch.setattr(process_vector._Worker, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vector.step(np.zeros(3, int))
    assert vector.closed
    assert not any(process.is_alive() for process in processes)


def test_a_worker_ends_when_its_pipe_closes_as_at_its_parents_death() -> None:
    context = multiprocessing.get_context("spawn")
    parent_end, worker_end = context.Pipe()
    process = context.Process(target=process_vector._work, args=(worker_end, 0))
    process.start()
    worker_end.close()
    parent_end.close()
    process.join()
    assert process.exitcode == 0


def test_a_restored_state_continues_as_the_saved_one() -> None:
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


def test_masked_resets_start_these_episodes_and_leave_the_others(
    shared_vector: ProcessVectorEnv,
) -> None:
    shared_vector.reset(seed=0)
    for _ in range(3):
        over = shared_vector.step(np.zeros(3, int))[2:4]
    assert (over[0] | over[1]).tolist() == [True, False, True]
    options = {"reset_mask": np.array([True, True, False]), "level": 3}
    observation, infos = shared_vector.reset(options=options)
    assert observation["inner"]["count"].tolist() == [0, 0, 3]
    assert infos["_level"].tolist() == [True, True, False]
    # The third resets by itself; the first was reset, and continues.
    assert shared_vector.step(np.zeros(3, int))[0]["inner"]["count"].tolist() == [1, 1, 0]


def test_environments_without_state_report_it(shared_vector: ProcessVectorEnv) -> None:
    assert not shared_vector.supports_state
    with pytest.raises(RuntimeError, match="cannot be saved"):
        shared_vector.get_state()
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments"):
        shared_vector.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask"):
        shared_vector.reset(options={"reset_mask": np.ones(2, bool)})
    infos = shared_vector.reset(options={"level": 3})[1]
    assert infos["level"].tolist() == [3, 3, 3]


def test_wrong_arguments_are_answered_with_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="num_workers=0 must be at least 1"):
        ProcessVectorEnv([Counter], num_workers=0)
    with pytest.raises(ValueError, match="env_makers is empty"):
        ProcessVectorEnv([])


def test_environments_are_spread_evenly() -> None:
    assert process_vector._worker_bounds(5, num_workers=2) == [(0, 2), (2, 5)]
    assert process_vector._worker_bounds(2, num_workers=7) == [(0, 1), (1, 2)]
