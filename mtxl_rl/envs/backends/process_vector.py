"""Many single environments in a few worker processes, behind Gymnasium's vector interface.

For environments whose step takes about a millisecond or more. Cheaper ones are faster in
Gymnasium's SyncVectorEnv, without processes.
"""

import contextlib
import functools
import itertools
import multiprocessing
import pickle
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    concatenate,
    create_empty_array,
    iterate,
)
from numpy.typing import NDArray

from mtxl_rl.envs.backends.named_env import fits
from mtxl_rl.envs.cores import num_cores_per_process
from mtxl_rl.envs.seeds import seed_per_env
from mtxl_rl.envs.wrappers.checked import reset_mask

_SECONDS_TO_CLOSE = 5.0

_Item = TypeVar("_Item")


class _Step(NamedTuple):
    """One environment's result of a step or a reset."""

    observation: Any
    info: dict[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


class ProcessVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """N environments spread over `num_workers` processes, several in each.

    Environment i is seeded with seed + i and belongs to worker i * num_workers // N. Rewards are
    float32. Autoreset is NEXT_STEP: the step after an episode's end ignores the action and returns
    the reset observation with reward 0.

    An environment's exception is raised here as a RuntimeError with its message, and its traceback
    as a note. A worker that dies, or does not reply within `timeout_seconds`, raises a RuntimeError
    too. Each of these, and Ctrl-C during a call, closes the vector. Workers ignore Ctrl-C; they end
    when this process closes them or ends.

    If every environment has `get_state()` and `set_state(state)`, so has the vector
    (`supports_state`).

    Gymnasium's AsyncVectorEnv starts one process per environment: with MuJoCo and its OpenGL that
    is hundreds of megabytes of libraries each, and 64 processes to wake at every step. It also
    creates one more environment in the calling process to learn the spaces, waits forever for a
    worker that was killed, and lets Ctrl-C end the workers first.
    """

    def __init__(
        self,
        env_makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        *,
        num_workers: int | None = None,
        timeout_seconds: float = 600.0,
    ) -> None:
        """Start the workers and wait until they have created their environments.

        Args:
            env_makers: One function per environment; cloudpickle pickles it, so it may be a lambda.
            num_workers: Number of processes, at most one per environment; None is one per core.
            timeout_seconds: Longest time that a worker may take to reply.
        """
        self.closed = True  # until there is something to close
        self.num_envs = len(env_makers)
        self.timeout_seconds = timeout_seconds
        bounds = _worker_bounds(self.num_envs, num_workers=num_workers)
        self._workers: list[_Worker] = []
        # Runs once: at close(), when this object is deleted, or at the program's end.
        self._shut_down = weakref.finalize(self, _shut_down, self._workers)
        self.closed = False
        try:
            self._start_workers(bounds)
            pickles = [_pickle_makers(env_makers[first:last]) for first, last in bounds]
            self._set_spaces(self._call_each("make", pickles))
        except BaseException:
            self.close()
            raise

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes in all environments, or in those of ``options["reset_mask"]``.

        Environment i gets seed + i, or seed[i] of a list, and the other options.
        """
        mask = reset_mask(options, num_envs=self.num_envs)
        is_chosen = [True] * self.num_envs if mask is None else mask.tolist()
        options = {key: value for key, value in (options or {}).items() if key != "reset_mask"}
        seeds: list[int | None] = [None] * self.num_envs
        if seed is not None:
            seeds = seed_per_env(seed, num_envs=self.num_envs)
        arguments = [
            (is_chosen[w.first : w.last], seeds[w.first : w.last], options or None)
            for w in self._workers
        ]
        return self._collect(self._call_each("reset", arguments))[:2]

    def step(
        self,
        actions: Any,  # noqa: ANN401 - the action space's
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every environment; one whose episode ended in the last step is reset instead."""
        action_list = list(iterate(self.action_space, actions))
        if len(action_list) != self.num_envs:
            raise ValueError(
                f"step got {len(action_list)} actions for {self.num_envs} environments; pass one "
                "for each."
            )
        replies = self._call_each("step", [action_list[w.first : w.last] for w in self._workers])
        observations, infos, steps = self._collect(replies)
        rewards = np.array([step.reward for step in steps], dtype=np.float32)
        terminated = np.array([step.terminated for step in steps], dtype=np.bool_)
        truncated = np.array([step.truncated for step in steps], dtype=np.bool_)
        return observations, rewards, terminated, truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Return every environment's state, and which ones reset in the next step."""
        self._check_supports_state()
        replies = self._call_each("get_state", [None] * len(self._workers))
        return {key: [item for reply in replies for item in reply[key]] for key in replies[0]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `get_state`."""
        self._check_supports_state()
        if len(state["envs"]) != self.num_envs:
            raise ValueError(
                f"the state holds {len(state['envs'])} environments and the vector has "
                f"{self.num_envs}; create the vector with {len(state['envs'])}."
            )
        parts = [
            {key: values[w.first : w.last] for key, values in state.items()} for w in self._workers
        ]
        self._call_each("set_state", parts)

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401 - Gymnasium's signature
        """End the workers; those that have not ended after 5 s are killed."""
        del kwargs
        self._shut_down()

    def _check_supports_state(self) -> None:
        if not self.supports_state:
            raise RuntimeError(
                "these environments cannot be saved, because not all have get_state and set_state; "
                "check supports_state first."
            )

    def _start_workers(self, bounds: list[tuple[int, int]]) -> None:
        # Not "fork", which copies the locks of torch's threads.
        processes = multiprocessing.get_context("spawn")
        with _sigint_blocked():
            for first, last in bounds:
                parent_end, worker_end = processes.Pipe()
                process = processes.Process(
                    target=_work,
                    args=(worker_end, first),
                    name=f"envs-{first}-{last - 1}",
                    daemon=True,
                )
                self._workers.append(_Worker(process, parent_end, first, last))
                process.start()
                # The worker must hold its end alone, so that its death closes the pipe.
                worker_end.close()

    def _set_spaces(self, descriptions: list[dict[str, Any]]) -> None:
        first = descriptions[0]
        for description in descriptions[1:]:
            _check_same_spaces(first, description)
        self.single_observation_space: Space[Any] = first["observation_space"]
        self.single_action_space: Space[Any] = first["action_space"]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**first["metadata"], "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = first["render_mode"]
        self.supports_state: bool = all(d["supports_state"] for d in descriptions)
        # The newest observation of each environment; a masked reset returns those of the others.
        self._newest = list(iterate(self.observation_space, self._empty_batch()))

    def _empty_batch(self) -> Any:  # noqa: ANN401 - arrays, or dicts of them
        return create_empty_array(self.single_observation_space, n=self.num_envs)

    def _collect(
        self, replies: list[list[_Step | None]]
    ) -> tuple[Any, dict[str, Any], list[_Step]]:
        """Batch the results of all workers; None stands for an environment that was not reset."""
        steps = [step for reply in replies for step in reply]
        infos: dict[str, Any] = {}
        for index, step in enumerate(steps):
            if step is not None:
                self._newest[index] = step.observation
                infos = self._add_info(infos, step.info, index) if step.info else infos
        try:
            observations = concatenate(
                self.single_observation_space, self._newest, self._empty_batch()
            )
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            space = self.single_observation_space
            wrong = [i for i, newest in enumerate(self._newest) if not fits(newest, space)]
            raise RuntimeError(
                f"an observation of environment {', '.join(map(str, wrong))} does not fit {space} "
                f"({error}); return observations of the declared shape and dtype."
            ) from error
        return observations, infos, [step for step in steps if step is not None]

    def _call_each(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Send each worker its argument of one command, then collect the replies in order."""
        if self.closed:
            raise RuntimeError(f"{command}: the environments are closed; create a new vector.")
        try:
            for worker, argument in zip(self._workers, arguments, strict=True):
                worker.send(command, argument)
            deadline = time.monotonic() + self.timeout_seconds
            return [worker.receive(command, deadline=deadline) for worker in self._workers]
        except BaseException:
            # Also after Ctrl-C: half a message may be in the pipe.
            self.close()
            raise


@dataclass(frozen=True)
class _Worker:
    """The parent's end of one worker, which has the environments first .. last - 1."""

    process: BaseProcess
    pipe: Connection
    first: int
    last: int

    def send(self, command: str, argument: Any) -> None:  # noqa: ANN401
        try:
            self.pipe.send((command, argument))
        except OSError:
            raise self._death() from None

    def receive(self, command: str, *, deadline: float) -> Any:  # noqa: ANN401
        """Return the reply; raise RuntimeError if the command failed, the worker died or hangs."""
        timeout = max(0.0, deadline - time.monotonic())
        # A process that the worker started may keep the pipe open: wait for the worker as well.
        if not wait([self.pipe, self.process.sentinel], timeout):
            raise RuntimeError(
                f"the worker process of {self._env_names()} did not reply to {command} in time; "
                "find out why it hangs, or pass a larger timeout_seconds."
            )
        try:
            if not self.pipe.poll():
                raise self._death()
            error, reply = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error is not None:
            message, details = error
            failure = RuntimeError(message)
            failure.add_note(details)
            raise failure
        return reply

    def _death(self) -> RuntimeError:
        self.process.join(1.0)
        code = self.process.exitcode
        how = "ended" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        hint = "; if memory ran out, use fewer environments" if how.endswith("SIGKILL") else ""
        return RuntimeError(f"the worker process of {self._env_names()} {how}{hint}")

    def _env_names(self) -> str:
        if self.last - self.first == 1:
            return f"environment {self.first}"
        return f"environments {self.first} to {self.last - 1}"


def _pickle_makers(env_makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> bytes:
    # Gymnasium's wrapper pickles one function: here one that returns all makers.
    return pickle.dumps(CloudpickleWrapper(functools.partial(list, env_makers)))


def _check_same_spaces(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("observation_space", "action_space"):
        if a[key] != b[key]:
            raise ValueError(
                f"the environments differ in their {key}: {a[key]} and {b[key]}; pass makers of "
                "environments with equal spaces."
            )


def _worker_bounds(num_envs: int, *, num_workers: int | None) -> list[tuple[int, int]]:
    """Return first and last + 1 of each worker's environments, split as evenly as possible."""
    if num_envs < 1:
        raise ValueError("env_makers is empty; pass one function per environment, at least one.")
    if num_workers is None:
        num_workers = num_cores_per_process()
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be at least 1, or None for one per core.")
    num_workers = min(num_workers, num_envs)
    edges = [i * num_envs // num_workers for i in range(num_workers + 1)]
    return list(itertools.pairwise(edges))


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block Ctrl-C here; processes started meanwhile inherit that, so it cannot stop their imports.

    A Ctrl-C in this process takes effect after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python 3.11 starts the tracker with the first process, and then unblocks SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(workers: list[_Worker]) -> None:
    """Close the pipes, which ends the workers as the death of this process would."""
    for worker in workers:
        worker.pipe.close()
    started = [worker.process for worker in workers if worker.process.pid is not None]
    deadline = time.monotonic() + _SECONDS_TO_CLOSE
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    workers.clear()


def _work(pipe: Connection, first: int) -> None:
    """Run a worker: answer commands until the pipe closes."""
    # Terminals and job schedulers signal the whole group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    envs = _WorkerEnvs(first)
    try:
        while True:
            command, argument = pipe.recv()
            reply = error = None
            try:
                reply = getattr(envs, command)(argument)
            except Exception as failure:
                error = (envs.describe_failure(command, failure), traceback.format_exc())
            pipe.send((error, reply))
    except (EOFError, OSError):
        pass  # the parent closed the pipe, or has ended
    finally:
        envs.close()


class _WorkerEnvs:
    """A worker's environments; make, reset, step, get_state and set_state are its commands."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._current = first  # the environment to name if something raises
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._is_reset_row: list[bool] = []

    def make(self, makers: bytes) -> dict[str, Any]:
        """Create the environments and describe them."""
        for make_env in self._numbered(pickle.loads(makers)()):
            self._envs.append(make_env())
        self._is_reset_row = [False] * len(self._envs)
        descriptions = [_describe(env) for env in self._envs]
        for description in descriptions:
            _check_same_spaces(descriptions[0], description)
        supports_state = all(description["supports_state"] for description in descriptions)
        return {**descriptions[0], "supports_state": supports_state}

    def reset(
        self, argument: tuple[list[bool], list[int | None], dict[str, Any] | None]
    ) -> list[_Step | None]:
        """Reset the chosen environments; None for the others."""
        is_chosen, seeds, options = argument
        steps: list[_Step | None] = [None] * len(self._envs)
        for index, env in enumerate(self._numbered(self._envs)):
            if is_chosen[index]:
                steps[index] = _Step(*env.reset(seed=seeds[index], options=options))
                self._is_reset_row[index] = False
        return steps

    def step(self, actions: list[Any]) -> list[_Step]:
        """Step every environment, or reset it after its episode's end (NEXT_STEP)."""
        steps = []
        for index, env in enumerate(self._numbered(self._envs)):
            if self._is_reset_row[index]:
                steps.append(_Step(*env.reset()))
                self._is_reset_row[index] = False
            else:
                observation, reward, terminated, truncated, info = env.step(actions[index])
                steps.append(_Step(observation, info, float(reward), terminated, truncated))
                self._is_reset_row[index] = bool(terminated or truncated)
        return steps

    def get_state(self, _: None) -> dict[str, Any]:
        """Return the environments' states, and which ones reset in the next step."""
        states = [env.get_state() for env in self._numbered(self._envs)]  # type: ignore[attr-defined]
        return {"envs": states, "is_reset_row": list(self._is_reset_row)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `get_state`."""
        for env, env_state in zip(self._numbered(self._envs), state["envs"], strict=True):
            env.set_state(env_state)  # type: ignore[attr-defined]
        self._is_reset_row = list(state["is_reset_row"])

    def describe_failure(self, command: str, failure: Exception) -> str:
        """Return one line for the parent's exception."""
        message = " ".join(str(failure).split())
        return (
            f"environment {self._current} failed in {command}: {type(failure).__name__}: {message}"
        )

    def close(self) -> None:
        """Close the environments and ignore their exceptions, which nobody receives any more."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()

    def _numbered(self, items: list[_Item]) -> Iterator[_Item]:
        for index, item in enumerate(items, start=self._first):
            self._current = index
            yield item


def _describe(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    return {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "metadata": dict(env.metadata),
        "render_mode": env.render_mode,
        "supports_state": hasattr(env, "get_state") and hasattr(env, "set_state"),
    }
