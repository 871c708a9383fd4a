"""Faulty environments: the run continues, or ends with an error that names environment and step.

python tests/reliability/environments.py --rollouts 300 --trained 100 --processes 10

One of four environments has a fault from a random step on. `rollouts` acts with a fixed policy for
three rollouts. If acting continues, every tensor of the other environments' rows must be equal, bit
for bit, to those without the fault. `trained` trains two iterations: the metrics must be finite, or
the error names environment and step. `processes` does it in worker processes, in which an
environment may also hang or die.
"""

import argparse
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from counts import Counts, Outcome, cases, run_program
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import mtxl_rl
from mtxl_rl.compose import compose_config
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.backends.custom_env import CustomEnvConfig
from mtxl_rl.envs.backends.process_vector import ProcessVectorEnv
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.training.run import Run

NUM_ENVS = 4
ROLLOUTS = 3
SIZES = {
    "model": "tiny", "num_envs": NUM_ENVS, "ppo.rollout_length": 16, "torso.window_length": 4,
    "torso.segment_length": 4, "ppo.bptt_segments": 2, "torso.width": 16, "torso.num_heads": 2,
    "ppo.num_epochs": 1, "ppo.num_minibatches": 2, "device": "cpu", "logger": "none",
    "total_steps": 128, "num_processes": 1, "compile": False,
}  # fmt: skip
VALUES: dict[str, Any] = {
    "NaN observation": np.full(3, np.nan, np.float32),
    "infinite observation": np.array([0, np.inf, 0], np.float32),
    "observation 1e30": np.full(3, 1e30, np.float32),
    "other shape": np.zeros(4, np.float32),
    "other shape, broadcast": np.zeros(1, np.float32),
    "float64": np.zeros(3),
    "texts": np.array(["a", "b", "c"]),
    "objects": np.array([None, None, None]),
    "None": None,
    "a dict": {"x": np.zeros(3, np.float32)},
    "a list": [0.0, 0.5, 1.0],
}
"""Observations of the faulty environment."""
REWARDS: dict[str, Any] = {
    "NaN reward": math.nan, "infinite reward": -math.inf, "reward 1e30": 1e30, "reward 1e38": 1e38,
    "constant reward": 1.0, "no reward": None, "a text as reward": "x", "reward [1]": np.ones(1),
    "reward [1, 1]": np.ones(2), "reward 1e308": 1e308,
}  # fmt: skip
ERRORS: dict[str, Exception] = {
    error.__name__: error("boom")
    for error in (ValueError, RuntimeError, KeyError, TypeError, OSError, AssertionError)
}
BEHAVIOURS = ("one-step episodes", "never ends", "four values", "no observation")
FAULTS = (*VALUES, *REWARDS, *ERRORS, *BEHAVIOURS, "no autoreset")
IN_PROCESSES = ("hangs", "dies", "ValueError", "other shape", "NaN observation")


class Walk(gymnasium.Env[Any, Any]):
    """Random observations and rewards, in episodes of random lengths; faulty from a step on."""

    def __init__(self, fault: str = "", first: int = 0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.fault, self.first, self.num_steps = fault, first, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        self.left = int(self.np_random.integers(1, 12))
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """Take a step, faulty if it is due."""
        self.num_steps += 1
        self.left -= 1
        observation = self.np_random.normal(size=3).astype(np.float32)
        reward, is_end = float(self.np_random.random()) * int(action), self.left <= 0
        if self.num_steps < self.first:
            return observation, reward, is_end, False, {}
        if self.fault in ERRORS:
            raise ERRORS[self.fault]
        if self.fault == "hangs":
            time.sleep(10**6)
        if self.fault == "dies":
            os._exit(3)
        is_end = {"one-step episodes": True, "never ends": False}.get(self.fault, is_end)
        if self.fault in ("four values", "no observation"):
            return (observation, reward, is_end, {})[0 if self.fault == "four values" else 1 :]
        observation = VALUES.get(self.fault, observation)
        return observation, REWARDS.get(self.fault, reward), is_end, False, {}


class NoAutoreset(SyncVectorEnv):
    """Steps one environment past the ends of its episodes."""

    row = 0

    def step(self, actions: Any) -> Any:  # noqa: ANN401
        """Take a step in every environment."""
        self._autoreset_envs[self.row] = False
        return super().step(actions)


def environments(fault: str, row: int, first: int) -> Callable[[], Any] | VectorEnv[Any, Any, Any]:
    """A function that makes the environments one after another, or a vector of them."""
    if fault == "no autoreset":
        vector = NoAutoreset([Walk] * NUM_ENVS, autoreset_mode=AutoresetMode.NEXT_STEP)
        vector.row = row
        return vector
    rows = iter(range(NUM_ENVS))
    return lambda: Walk(*((fault, first) if next(rows) == row else ()))


def workers(fault: str, row: int, first: int) -> VectorEnv[Any, Any, Any]:
    """The environments in two worker processes."""
    makers = [
        (lambda index=index: Walk(*((fault, first) if index == row else ())))
        for index in range(NUM_ENVS)
    ]
    vector = ProcessVectorEnv(makers, num_workers=2)
    vector.timeout_seconds = 3  # From now on: starting the workers takes longer.
    return vector


def configuration() -> TrainConfig:
    """The options of acting with a fixed policy."""
    config = compose_config(["env=Gymnasium", *(f"{key}={value}" for key, value in SIZES.items())])
    config.env = CustomEnvConfig()
    return config


def rows_of(env: Any, config: TrainConfig) -> list[dict[str, torch.Tensor]]:  # noqa: ANN401
    """All tensors of some rollouts of an untrained policy, [B, ...] each."""
    vector = make_vector_env(config.env, num_envs=NUM_ENVS, seed=7, custom=env)
    try:
        run = Run(config, vector)
        run.start(seed=None)
        return [tensors(run.collector.collect()[0]) for _ in range(ROLLOUTS)]
    finally:
        vector.close()


def tensors(rollout: object) -> dict[str, torch.Tensor]:
    """Copies of a rollout's tensors by name."""
    fields = {**vars(rollout), **vars(rollout)["observation"]}
    return {key: value.clone() for key, value in fields.items() if torch.is_tensor(value)}


def compare(
    rollouts: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]], *, row: int
) -> Outcome:
    """Continued, if the other environments' rows are equal bit for bit."""
    others = [index for index in range(NUM_ENVS) if index != row]
    for number, (rollout, whole) in enumerate(zip(rollouts, expected, strict=True)):
        for key, value in rollout.items():
            if not torch.equal(value[others], whole[key][others]):
                return Outcome("failed", f"{key} of other environments differs, rollout {number}")
    return Outcome("continued")


def ended(error: Exception, *, row: int, fault: str) -> Outcome:
    """Ended, if the error is one line or the environment's own, and names environment and step."""
    text = "; ".join([str(error), *getattr(error, "__notes__", [])])
    is_own = fault in ERRORS and type(error) is type(ERRORS[fault])
    if not is_own and not isinstance(error, ValueError | RuntimeError):
        return Outcome("failed", f"{type(error).__name__}: {text}")
    # A worker process has several environments.
    names = (f"environment {row} ", f"environments {row - row % 2} to {row - row % 2 + 1} ")
    if not any(name in text for name in names) or "step" not in text:
        return Outcome("failed", f"neither environment {row} nor its step is named: {text}")
    if not is_own and "\n" in str(error):
        return Outcome("failed", f"not one line: {text}")
    return Outcome("ended")


def trained(env: Any, *, row: int, fault: str) -> Outcome:  # noqa: ANN401
    """Train two iterations."""
    try:
        run = mtxl_rl.train(env, SIZES, run_dir="run", verbose=False)
    except Exception as error:
        return ended(error, row=row, fault=fault)
    finally:
        shutil.rmtree("run", ignore_errors=True)
    if not all(value is not None for value in run.metrics.values()):
        return Outcome("failed", f"metrics that are not finite: {run.metrics}")
    return Outcome("continued")


def acted(env: Any, expected: list[Any], config: TrainConfig, *, row: int, fault: str) -> Outcome:  # noqa: ANN401
    """Act with a fixed policy, and compare the other environments."""
    try:
        rollouts = rows_of(env, config)
    except Exception as error:
        return ended(error, row=row, fault=fault)
    return compare(rollouts, expected, row=row)


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Act and train with one fault after another."""
    config = configuration()
    expected = rows_of(environments("", 0, 0), config)
    tables = []
    for title, size, faults in (
        ("rollouts", arguments.rollouts, FAULTS),
        ("trained", arguments.trained, FAULTS),
        ("processes", arguments.processes, IN_PROCESSES),
    ):
        counts = Counts(f"environments: {title}")
        for case in cases(arguments, size):
            rng = random.Random(f"{arguments.seed}/{case}/{title}")
            fault = faults[case % len(faults)]
            row, first = rng.randrange(NUM_ENVS), rng.randint(1, 25)
            env = (workers if title == "processes" else environments)(fault, row, first)
            if title == "trained":
                outcome = trained(env, row=row, fault=fault)
            else:
                outcome = acted(env, expected, config, row=row, fault=fault)
            if title == "processes":
                env.close()  # type: ignore[union-attr]
            counts.add(fault, f"case {case}: environment {row} from step {first}", outcome)
        tables.append(counts)
    return tables


if __name__ == "__main__":
    run_program(__doc__, {"rollouts": 300, "trained": 100, "processes": 10}, run)
