"""Many single environments in a few worker processes, behind Gymnasium's vector interface.

For environments that take about a millisecond a step or more. Cheaper ones are faster in
Gymnasium's SyncVectorEnv, without processes.
"""

import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from types import FrameType
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, iterate
from numpy.typing import NDArray

from mtxl_rl.envs.wrappers.checked import reset_mask

_SECONDS_TO_CLOSE = 5.0
_SECONDS_BETWEEN_LIFE_CHECKS = 1.0

# Names an array of the observation by the Dict keys that lead to it; () where the space is no Dict.
_Path = tuple[str, ...]

_Item = TypeVar("_Item")


class ProcessVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """N environments spread over `num_workers` processes, several to a worker.

    Env i is seeded with seed + i and lives in worker i * num_workers // N. Observations, rewards
    (float32) and flags are written by the workers into shared memory; what step and reset return
    are copies. Autoreset is NEXT_STEP: the step after an episode's end ignores the action and
    returns the reset observation with reward 0. Observation spaces: Box, Discrete, MultiDiscrete,
    MultiBinary, and Dicts of these.

    An environment's exception is raised here as a RuntimeError with its message, and its traceback
    as a note; a worker that dies is a RuntimeError too. Either closes the whole vector. Ctrl-C
    reaches only this process: the workers ignore it and end when this process closes them or is
    gone.

    If every environment has `get_state()` and `set_state(state)`, then so has this
    (`supports_state`).

    Gymnasium's AsyncVectorEnv is not used because it starts one process per environment: with
    MuJoCo and its OpenGL that is hundreds of megabytes for libraries alone, and 64 processes to
    wake in turn on a few cores at every step. It also builds one more environment in the calling
    process to learn the spaces, waits for ever for a worker that was killed, and lets Ctrl-C end
    the workers first.
    """

    def __init__(
        self,
        env_makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        *,
        num_workers: int | None = None,
        context: str = "spawn",
    ) -> None:
        """Starts the workers and waits until they have made their environments.

        Args:
            env_makers: one function per environment; pickled by cloudpickle, so a lambda will do.
            num_workers: number of processes, never more than environments; None is one per core.
            context: `spawn` or `forkserver`. Not `fork`: it copies the locks of torch's threads.
        """
        self.closed = True  # until there is something to close
        self.num_envs = len(env_makers)
        bounds = _worker_bounds(self.num_envs, num_workers=num_workers)
        if context not in ("spawn", "forkserver"):
            raise ValueError(f"context={context!r} must be 'spawn' or 'forkserver'")
        self._workers: list[_Worker] = []
        self._memory: list[_SharedArrays] = []
        self._call_number = 0
        # Runs once: at close(), when this object goes, or at the program's end.
        self._shut_down = weakref.finalize(self, _shut_down, self._workers, self._memory)
        self.closed = False
        try:
            self._start_workers(bounds, context=context)
            pickles = [_pickle_makers(env_makers[first:last]) for first, last in bounds]
            self._take_spaces(self._call_each("make", pickles))
            self._share_memory()
        except BaseException:
            self.close()
            raise

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere, or in ``options["reset_mask"]``; the rest stay.

        Env i gets seed + i, or seed[i] of a list, and the other options.
        """
        mask = reset_mask(options, num_envs=self.num_envs)
        chosen = [True] * self.num_envs if mask is None else mask.tolist()
        options = {key: value for key, value in (options or {}).items() if key != "reset_mask"}
        seeds = _seed_list(seed, num_envs=self.num_envs)
        replies = self._call_each("reset", [
            (chosen[w.first : w.last], seeds[w.first : w.last], options or None)
            for w in self._workers
        ])  # fmt: skip
        return self._observations(), self._merge_infos(replies)

    def step(
        self,
        actions: Any,  # noqa: ANN401 - the action space's
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One step of every environment, or the reset of one that ended in the step before."""
        action_list = list(iterate(self.action_space, actions))
        if len(action_list) != self.num_envs:
            raise ValueError(
                f"{len(action_list)} actions were given for {self.num_envs} environments; "
                "give one for each"
            )
        replies = self._call_each("step", [action_list[w.first : w.last] for w in self._workers])
        infos = self._merge_infos(replies)
        shared = self._memory[0]
        return (
            self._observations(),
            shared.rewards.copy(),
            shared.terminated.copy(),
            shared.truncated.copy(),
            infos,
        )

    def get_state(self) -> dict[str, Any]:
        """Every environment's state, and which of them reset at the next step."""
        self._check_supports_state()
        replies = self._call_all("get_state", None)
        return {
            "envs": [state for reply in replies for state in reply["envs"]],
            "resets_next": [flag for reply in replies for flag in reply["resets_next"]],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Puts every environment where `get_state()` found it."""
        self._check_supports_state()
        if len(state["envs"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['envs'])} environments, but there are "
                f"{self.num_envs}; make the vector with {len(state['envs'])}"
            )
        parts = [
            {key: values[w.first : w.last] for key, values in state.items()} for w in self._workers
        ]
        self._call_each("set_state", parts)

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401 - Gymnasium's signature
        """Ends the workers; those that do not end by themselves within 5 s are killed."""
        del kwargs
        self._shut_down()

    def _check_supports_state(self) -> None:
        if not self.supports_state:
            raise RuntimeError(
                "these environments cannot be saved: not all have get_state and set_state; "
                "check supports_state first"
            )

    def _start_workers(self, bounds: list[tuple[int, int]], *, context: str) -> None:
        processes = multiprocessing.get_context(context)
        with _sigint_blocked():
            for first, last in bounds:
                ours, theirs = processes.Pipe()
                process: BaseProcess = processes.Process(  # type: ignore[attr-defined]
                    target=_work,
                    args=(theirs, first),
                    name=f"envs-{first}-{last - 1}",
                    daemon=True,
                )
                self._workers.append(_Worker(process=process, pipe=ours, first=first, last=last))
                process.start()
                # With this end held by the worker alone, its death ends the pipe.
                theirs.close()

    def _take_spaces(self, descriptions: list[dict[str, Any]]) -> None:
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

    def _share_memory(self) -> None:
        layout = _Layout.of(self.single_observation_space, num_envs=self.num_envs)
        block = SharedMemory(create=True, size=layout.size)
        self._memory.append(_SharedArrays(block, layout))
        try:
            self._call_all("share", (block.name, layout))
        finally:
            # All who need it hold it: without its name it goes with them, however they end.
            block.unlink()

    def _observations(self) -> Any:  # noqa: ANN401 - arrays, or dicts of them
        return _unflatten({path: leaf.copy() for path, leaf in self._memory[0].observation.items()})

    def _merge_infos(self, replies: list[list[tuple[int, dict[str, Any]]]]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for reply in replies:
            for index, info in reply:
                infos = self._add_info(infos, info, index)
        return infos

    def _call_all(self, command: str, argument: Any) -> list[Any]:  # noqa: ANN401
        return self._call_each(command, [argument] * len(self._workers))

    def _call_each(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Sends one command to every worker, then collects the replies in order."""
        if self.closed:
            raise RuntimeError(f"{command}: the environments are closed; make a new vector")
        # Ctrl-C may have interrupted an earlier call: the number tells its late replies from this
        # call's.
        self._call_number += 1
        try:
            for worker, argument in zip(self._workers, arguments, strict=True):
                worker.send((self._call_number, command, argument))
            return [worker.receive(self._call_number) for worker in self._workers]
        except RuntimeError:
            self.close()
            raise


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """The parent's hold on one worker: envs first .. last - 1."""

    process: BaseProcess
    pipe: Connection
    first: int
    last: int

    def send(self, message: Any) -> None:  # noqa: ANN401
        try:
            with _ctrl_c_waits():
                self.pipe.send(message)
        except OSError:
            raise self._death() from None

    def receive(self, call_number: int) -> Any:  # noqa: ANN401
        """The reply to this call; late replies to calls that were interrupted are dropped."""
        while True:
            try:
                # A process that the worker itself started may keep the pipe open: look at both.
                while not self.pipe.poll(_SECONDS_BETWEEN_LIFE_CHECKS):
                    if not self.process.is_alive() and not self.pipe.poll():
                        raise self._death()
                with _ctrl_c_waits():
                    number, error, reply = self.pipe.recv()
            except (EOFError, OSError):
                raise self._death() from None
            if number == call_number:
                break
        if error is not None:
            message, details = error
            failure = RuntimeError(message)
            failure.add_note(details)
            raise failure
        return reply

    def _death(self) -> RuntimeError:
        self.process.join(_SECONDS_BETWEEN_LIFE_CHECKS)
        code = self.process.exitcode
        how = "ended" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        hint = "; out of memory? Then use fewer environments" if how.endswith("SIGKILL") else ""
        return RuntimeError(
            f"the worker process of {_env_names(self.first, self.last)} {how}{hint}"
        )


def _env_names(first: int, last: int) -> str:
    return f"environment {first}" if last - first == 1 else f"environments {first} to {last - 1}"


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where each array lies in the shared memory: plain data, to be sent to the workers."""

    arrays: dict[_Path, tuple[int, tuple[int, ...], np.dtype[Any]]]
    size: int

    @staticmethod
    def of(space: Space[Any], *, num_envs: int) -> "_Layout":
        wanted = {("observation", *path): leaf for path, leaf in _space_leaves(space).items()}
        wanted |= {
            ("rewards",): ((), np.dtype(np.float32)),
            ("terminated",): ((), np.dtype(np.bool_)),
            ("truncated",): ((), np.dtype(np.bool_)),
        }
        arrays, offset = {}, 0
        for path, (shape, dtype) in wanted.items():
            arrays[path] = (offset, (num_envs, *shape), dtype)
            num_bytes = num_envs * math.prod(shape) * dtype.itemsize
            offset += -(-num_bytes // 64) * 64  # whole cache lines
        return _Layout(arrays=arrays, size=offset)


class _SharedArrays:
    """NumPy views of the shared memory, one row per environment."""

    def __init__(self, block: SharedMemory, layout: _Layout) -> None:
        views: dict[_Path, NDArray[Any]] = {
            path: np.ndarray(shape, dtype, buffer=block.buf, offset=offset)
            for path, (offset, shape, dtype) in layout.arrays.items()
        }
        self._block = block
        self.rewards = views.pop(("rewards",))
        self.terminated = views.pop(("terminated",))
        self.truncated = views.pop(("truncated",))
        self.observation = {path[1:]: view for path, view in views.items()}

    def close(self) -> None:
        # The memory cannot go while there are views of it.
        del self.rewards, self.terminated, self.truncated, self.observation
        self._block.close()


def _space_leaves(
    space: Space[Any], path: _Path = ()
) -> dict[_Path, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array in one observation."""
    if isinstance(space, Dict):
        leaves: dict[_Path, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        for key, child in space.spaces.items():
            leaves |= _space_leaves(child, (*path, key))
        return leaves
    if not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        raise ValueError(
            f"observation space {space} cannot be shared between processes; "
            "it must be a Box, Discrete, MultiDiscrete or MultiBinary space or a Dict of these: "
            "wrap the environment to convert it"
        )
    assert space.shape is not None, space
    assert space.dtype is not None, space
    return {path: (space.shape, np.dtype(space.dtype))}


def _unflatten(leaves: dict[_Path, NDArray[Any]]) -> Any:  # noqa: ANN401 - arrays, or dicts of them
    if () in leaves:
        return leaves[()]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree


def _pickle_makers(env_makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> bytes:
    # Gymnasium's wrapper pickles lambdas too, but is for one function: here one that returns all.
    return pickle.dumps(CloudpickleWrapper(functools.partial(list, env_makers)))


def _check_same_spaces(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in ("observation_space", "action_space"):
        if a[key] != b[key]:
            raise ValueError(
                f"the environments differ in their {key}: {a[key]} and {b[key]}; "
                "give makers of the same kind of environment"
            )


def _worker_bounds(num_envs: int, *, num_workers: int | None) -> list[tuple[int, int]]:
    """First and last + 1 of each worker's environments, as even as can be."""
    if num_envs < 1:
        raise ValueError("env_makers is empty; give one function per environment, at least one")
    if num_workers is None:
        num_workers = _num_cores()
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be at least 1, or None for one per core")
    num_workers = min(num_workers, num_envs)
    edges = [i * num_envs // num_workers for i in range(num_workers + 1)]
    return list(itertools.pairwise(edges))


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _seed_list(seed: int | Sequence[int | None] | None, *, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(
            f"{len(seed)} seeds were given for {num_envs} environments; give one for each, "
            "or one int"
        )
    return list(seed)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Children start with Ctrl-C blocked, so that none meets them while they import; ours waits."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python 3.11 starts this with the first process if it must, and then unblocks SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Lets Ctrl-C take effect after the block: half a message would spoil all that follow."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        handler(*arrived[0])


def _shut_down(workers: list[_Worker], memory: list[_SharedArrays]) -> None:
    """Closes the pipes, which tells the workers to end, as it does when this process is killed."""
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
    for arrays in memory:
        arrays.close()
    memory.clear()


def _work(pipe: Connection, first: int) -> None:
    """A worker's life: answers commands until the pipe ends."""
    # A terminal and a job scheduler signal the whole group; when to end is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    envs = _WorkerEnvs(first)
    try:
        while True:
            number, command, argument = pipe.recv()
            reply = error = None
            try:
                reply = getattr(envs, command)(argument)
            except Exception as failure:
                error = (envs.describe_failure(command, failure), traceback.format_exc())
            pipe.send((number, error, reply))
    except (EOFError, OSError):
        pass  # the parent closed the pipe, or is gone
    finally:
        envs.close()


class _WorkerEnvs:
    """A worker's environments; the methods without underscore are the commands it answers."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._current = first  # whose failure it is if something raises
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._resets_next: list[bool] = []
        self._shared: _SharedArrays | None = None

    def make(self, makers: bytes) -> dict[str, Any]:
        """Makes the environments and describes them."""
        for make_env in self._numbered(pickle.loads(makers)()):
            self._envs.append(make_env())
        self._resets_next = [False] * len(self._envs)
        descriptions = [_describe(env) for env in self._envs]
        for description in descriptions:
            _check_same_spaces(descriptions[0], description)
        supports_state = all(description["supports_state"] for description in descriptions)
        return {**descriptions[0], "supports_state": supports_state}

    def share(self, where: tuple[str, _Layout]) -> None:
        """Opens the parent's shared memory."""
        name, layout = where
        self._shared = _SharedArrays(SharedMemory(name), layout)

    def reset(
        self, argument: tuple[list[bool], list[int | None], dict[str, Any] | None]
    ) -> list[tuple[int, dict[str, Any]]]:
        """Resets the chosen environments and returns the infos that are not empty."""
        chosen, seeds, options = argument
        infos = []
        for env, is_chosen, seed in zip(self._numbered(self._envs), chosen, seeds, strict=True):
            if not is_chosen:
                continue
            obs, info = env.reset(seed=seed, options=options)
            self._write(obs, reward=0.0, terminated=False, truncated=False)
            infos.append((self._current, info))
        return [(index, info) for index, info in infos if info]

    def step(self, actions: list[Any]) -> list[tuple[int, dict[str, Any]]]:
        """Steps every environment, or resets it after its episode's end (NEXT_STEP)."""
        infos = []
        for env, action in zip(self._numbered(self._envs), actions, strict=True):
            if self._resets_next[self._current - self._first]:
                obs, info = env.reset()
                self._write(obs, reward=0.0, terminated=False, truncated=False)
            else:
                obs, reward, terminated, truncated, info = env.step(action)
                self._write(obs, reward=reward, terminated=terminated, truncated=truncated)
            infos.append((self._current, info))
        return [(index, info) for index, info in infos if info]

    def get_state(self, _: None) -> dict[str, Any]:
        """The environments' own states, and which reset at the next step."""
        states = [env.get_state() for env in self._numbered(self._envs)]  # type: ignore[attr-defined]
        return {"envs": states, "resets_next": list(self._resets_next)}

    def set_state(self, state: dict[str, Any]) -> None:
        """The reverse of `get_state`."""
        for env, env_state in zip(self._numbered(self._envs), state["envs"], strict=True):
            env.set_state(env_state)  # type: ignore[attr-defined]
        self._resets_next = list(state["resets_next"])

    def describe_failure(self, command: str, failure: Exception) -> str:
        """One line for the parent."""
        message = " ".join(str(failure).split())
        return (
            f"environment {self._current} failed in {command}: {type(failure).__name__}: {message}"
        )

    def close(self) -> None:
        """Closes the environments; a failure here concerns nobody any more."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()
        if self._shared is not None:
            self._shared.close()

    def _numbered(self, items: list[_Item]) -> Iterator[_Item]:
        for index, item in enumerate(items, start=self._first):
            self._current = index
            yield item

    def _write(self, obs: Any, *, reward: Any, terminated: bool, truncated: bool) -> None:  # noqa: ANN401
        assert self._shared is not None, "share comes before reset and step"
        index = self._current
        for path, leaf in self._shared.observation.items():
            value = obs
            for key in path:
                value = value[key]
            leaf[index] = value
        self._shared.rewards[index] = reward
        self._shared.terminated[index] = terminated
        self._shared.truncated[index] = truncated
        self._resets_next[index - self._first] = bool(terminated or truncated)


def _describe(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    return {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "metadata": dict(env.metadata),
        "render_mode": env.render_mode,
        "supports_state": hasattr(env, "get_state") and hasattr(env, "set_state"),
    }
