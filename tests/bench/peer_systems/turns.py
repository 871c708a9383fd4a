"""What the processes of `peers.py` share: the environments, their clock, and the turns.

A process runs `python -m peer_systems.NAME OPTIONS`, with the options as JSON. The parent writes
one word per line, and the process answers each with one line of JSON:

    iterate   one iteration of training: seconds in total, of the environments and of learning,
              and the mean score of the last 100 episodes (null before there are as many)
    act N     seconds from N observations in NumPy to N actions
    (end)     the process exits

Systems keep their own training loops. `PacedEnv` counts the steps: an iteration ends where the
first step of the next one is about to begin, and there the process waits for its next turn. A
system whose rollouts differ in length calls `Turns.wait` itself. Learning starts when the last
environment step of the iteration has returned. So the bootstrap value and the advantages are part
of learning, for every system.
"""

import argparse
import json
import os
import resource
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TextIO

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from train import config_of

from mtxl_rl.agents.stagger import Stagger
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import make_vector_env, stream_seed

ENDLESS = 1_000_000_000
"""Steps or iterations that no benchmark reaches."""


class System(NamedTuple):
    """A system that trains and acts."""

    title: str
    """Name, version and network."""
    num_parameters: int
    train: Callable[[], object]
    """Trains for ever; `PacedEnv` or `Turns.wait` ends the process."""
    act: Callable[[int], Callable[[], object]]
    """Returns one step of acting in so many rows, from observations in NumPy to actions."""


class Turns:
    """The process's side of the conversation with the parent."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.begin = 0.0
        self.num_steps = 0
        """Steps of the vector environment in this iteration."""
        self.env_seconds = 0.0
        self.scores: deque[float] = deque(maxlen=100)
        """Of the last episodes: success, or the return where a task reports no success."""
        self.learning_begins = 0.0
        """When the last environment step returned, or the iteration's begin."""

    def answer(self, **message: object) -> None:
        """Send one line."""
        print(json.dumps(message), file=self.answers, flush=True)

    def start(self) -> None:
        """Start the clock of an iteration."""
        self.begin = self.learning_begins = time.perf_counter()
        self.num_steps, self.env_seconds = 0, 0.0

    def wait(self) -> None:
        """Report the iteration that ends here, wait for the next turn, and start its clock."""
        now = time.perf_counter()
        self.answer(
            steps=self.num_steps,
            total=now - self.begin if self.env_seconds else None,
            env=self.env_seconds,
            learn=now - self.learning_begins,
            memory=peak_memory(),
            threads=torch.get_num_threads(),
            score=float(np.mean(self.scores)) if len(self.scores) == 100 else None,
        )
        if sys.stdin.readline().strip() != "iterate":
            os._exit(0)  # From inside a peer's training loop, which may catch exceptions.
        self.start()


class PacedEnv(VectorEnv[Any, Any, Any]):
    """The task's environments with a clock; observations are vectors or pictures.

    They start spread over their episodes. `reset` returns the current observation, and reset rows
    of NEXT_STEP autoreset are steps like any other: to a system that does not know them, an episode
    begins with one more step, which shows the last observation of the episode before.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    instance: ClassVar["PacedEnv"]
    """The one environment of the process, for systems that create it by a function."""

    def __init__(self, config: TrainConfig, turns: Turns) -> None:
        PacedEnv.instance = self
        self.turns = turns
        self.steps_per_iteration: int | None = config.ppo.rollout_length
        """None where the system itself calls `Turns.wait`."""
        self.num_envs = config.num_envs
        self.env = make_vector_env(config.env, num_envs=self.num_envs, seed=stream_seed(0, 0))
        self.single_action_space = self.env.single_action_space
        self.single_observation_space = self.env.single_observation_space
        self.action_space, self.observation_space = (
            self.env.action_space,
            self.env.observation_space,
        )
        self.episode_length = config.steps_to_stagger
        stagger = Stagger.over(config.steps_to_stagger, self.num_envs)
        self.observation, self.info, _ = stagger.run(self.env, *self.env.reset())
        self.returns = np.zeros(self.num_envs)

    @property
    def is_image(self) -> bool:
        """Whether observations are pictures [B, height, width, channels] of uint8."""
        space = self.single_observation_space
        return isinstance(space, spaces.Box) and len(space.shape) == 3

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        space = self.single_action_space
        assert isinstance(space, spaces.Discrete)
        return int(space.n)

    def observations(self, rows: int) -> NDArray[Any]:
        """The current observation repeated to so many rows, to measure acting."""
        return np.resize(self.observation, (rows, *self.observation.shape[1:]))

    def reset(self, **_: object) -> tuple[NDArray[Any], dict[str, Any]]:  # type: ignore[override]
        """The current observation: no episode starts."""
        return self.observation, self.info

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One step of all environments; before an iteration's first one, wait for the turn."""
        if self.turns.num_steps == self.steps_per_iteration:
            self.turns.wait()
        self.turns.num_steps += 1
        begin = time.perf_counter()
        self.observation, *outcome, self.info = self.env.step(actions)
        end = self.turns.learning_begins = time.perf_counter()
        self.turns.env_seconds += end - begin
        self.update_scores(*outcome)
        return self.observation, *outcome, self.info

    def update_scores(
        self, rewards: NDArray[Any], terminated: NDArray[Any], truncated: NDArray[Any]
    ) -> None:
        """Keep the scores of the episodes that end in this step."""
        self.returns += rewards
        ends = terminated | truncated
        if ends.any():
            self.turns.scores.extend(self.info.get("success", self.returns)[ends].tolist())
            self.returns[ends] = 0

    def close(self, **_: object) -> None:
        """Leave the environments open: the process ends with them."""


def peak_memory() -> float:
    """The process's largest resident memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def seconds_of(step: Callable[[], object], *, seconds: float) -> float:
    """The median duration of a step that is repeated for so long, and at least 5 times."""
    durations: list[float] = []
    while len(durations) < 5 or sum(durations) < seconds:
        begin = time.perf_counter()
        step()
        durations.append(time.perf_counter() - begin)
    return float(np.median(durations))


def run(build: Callable[[argparse.Namespace, TrainConfig, PacedEnv], System]) -> None:
    """Build the system of this process and take its turns.

    Its standard output becomes the log, so that only answers reach the parent.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = argparse.Namespace(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    turns = Turns(answers)
    try:
        config = config_of(options.task, options.torso, options)
        env = PacedEnv(config, turns)
        system = build(options, config, env)
        turns.answer(title=system.title, parameters=system.num_parameters)
        take_turns(system, turns, seconds=options.seconds)
    except Exception as error:
        traceback.print_exc()
        turns.answer(error=f"{type(error).__name__}: {error}")


def take_turns(system: System, turns: Turns, *, seconds: float) -> None:
    """Answer the parent until it ends; the first `iterate` enters the training loop."""
    steps: dict[int, Callable[[], object]] = {}
    while word := sys.stdin.readline().strip():
        if word == "iterate":
            turns.start()
            system.train()
            raise RuntimeError("the training loop ended by itself")
        rows = int(word.removeprefix("act "))
        if rows not in steps:
            steps[rows] = system.act(rows)
            seconds_of(steps[rows], seconds=seconds)  # Allocates, compiles and fills windows.
        turns.answer(seconds=seconds_of(steps[rows], seconds=seconds))
