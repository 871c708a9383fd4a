"""Random observation and action spaces, observations and prompts: accepted, or one sentence.

python tests/reliability/spaces.py --spaces 1000 --prompts 1000

A case of `spaces` draws a space of each kind that Gymnasium has, at random sizes, types and bounds,
also such that no agent can learn. An agent trains for two iterations in an environment of random
observations from it, or is refused. One that trained then acts on a legal observation, which must
succeed, and on illegal ones: another shape, type or key, numbers that are not finite, or no array.
`prompts` does so with a language model: tokens and texts of random lengths, types and values.
"""

import argparse
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from counts import Counts, Outcome, call, cases, run_program
from gymnasium import spaces

import mtxl_rl
from mtxl_rl.language_model.causal_lm import CausalLM
from mtxl_rl.language_model.character_trainer import generate
from mtxl_rl.language_model.model import MemoryTransformerXL

OPTIONS: dict[str, Any] = {
    "model": "tiny", "num_envs": 2, "ppo.rollout_length": 8, "torso.window_length": 4,
    "torso.segment_length": 4, "ppo.bptt_segments": 2, "torso.width": 16, "torso.num_heads": 2,
    "ppo.num_epochs": 1, "ppo.num_minibatches": 2, "device": "cpu", "logger": "none",
    "num_processes": 1, "compile": False,
}  # fmt: skip
FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16)
KEYS = ("a", "b", "image", "obs", "a.b", "", "episode_step", "action_mask", "größe", "a b", "keys",
        "training", "%", "mean")  # fmt: skip


def shape(rng: random.Random) -> tuple[int, ...]:
    """A shape of a few numbers, rarely of none."""
    return tuple(rng.choice((1, 2, 3, 5, 0)) for _ in range(rng.choice((0, 1, 1, 1, 2, 3))))


def number_box(rng: random.Random) -> spaces.Space[Any]:
    """Numbers between bounds of any size."""
    if rng.random() < 0.3:
        dtype = rng.choice(INTEGERS)
        info = np.iinfo(dtype)
        low, high = rng.choice(((info.min, info.max), (0, 3), (1, 1)))
        return spaces.Box(low, high, shape(rng), dtype)
    high = rng.choice((0.0, 1.0, 1e4, np.inf))
    return spaces.Box(-high, high, shape(rng), rng.choice(FLOATS))


def image_box(rng: random.Random) -> spaces.Space[Any]:
    """Pixels of any side and number of channels."""
    height, width = rng.choice((1, 3, 7, 16, 36, 64)), rng.choice((1, 3, 7, 16, 36, 64))
    channels = rng.choice((1, 3, 4, 9))
    size = (height, width, channels) if rng.random() < 0.5 else (channels, height, width)
    return spaces.Box(0, 255, size, rng.choice((np.uint8, np.uint8, np.float32)))


def discrete(rng: random.Random) -> spaces.Space[Any]:
    """One choice."""
    return spaces.Discrete(rng.choice((1, 2, 7, 5000)), start=rng.choice((0, 0, 1, -3)))


def multi(rng: random.Random) -> spaces.Space[Any]:
    """Several choices."""
    numbers = [rng.choice((1, 2, 3, 50)) for _ in range(rng.randint(1, 4))]
    return rng.choice((
        spaces.MultiDiscrete(numbers),
        spaces.MultiDiscrete(numbers, start=[rng.choice((0, -2, 5)) for _ in numbers]),
        spaces.MultiDiscrete([numbers, numbers]),
        spaces.MultiBinary(len(numbers)),
        spaces.MultiBinary([2, len(numbers)]),
    ))  # fmt: skip


def uncovered(rng: random.Random) -> spaces.Space[Any]:
    """A space that no encoder covers."""
    return rng.choice((
        spaces.Text(5),
        spaces.Tuple([discrete(rng), number_box(rng)]),
        spaces.Sequence(spaces.Discrete(3)),
        spaces.Dict({"inner": spaces.Dict({"a": spaces.Discrete(2)})}),
        spaces.Dict(),
    ))  # fmt: skip


LEAVES = (number_box, number_box, image_box, discrete, multi)


def observation_space(rng: random.Random) -> spaces.Space[Any]:
    """A leaf, a Dict of leaves, or rarely something else."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(LEAVES)(rng)
    if kind < 0.92:
        keys = rng.sample(KEYS, rng.randint(1, 4))
        return spaces.Dict({key: rng.choice(LEAVES)(rng) for key in keys})
    return uncovered(rng)


def action_space(rng: random.Random) -> spaces.Space[Any]:
    """One that a head covers, or rarely not."""
    kinds: tuple[Callable[[random.Random], spaces.Space[Any]], ...] = (
        discrete,
        multi,
        lambda rng: spaces.Box(-1.0, rng.choice((1.0, 3.0)), (rng.randint(1, 3),), np.float32),
        number_box,
        uncovered,
    )
    return rng.choices(kinds, weights=(6, 3, 3, 1, 1))[0](rng)


class RandomEnv(gymnasium.Env[Any, Any]):
    """Observations and rewards at random, episodes of random lengths."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401, ARG002
        """Start an episode."""
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """One step."""
        if not self.action_space.contains(action):
            raise AssertionError(f"the action {action!r} is not in {self.action_space}")
        reward, ends = self.np_random.normal(), self.np_random.random(2) < 0.1
        return self.observation_space.sample(), float(reward), *map(bool, ends), {}


def damaged(value: Any, rng: random.Random) -> Any:  # noqa: ANN401
    """An observation that is not in its space, or only just."""
    if isinstance(value, dict) and value and rng.random() < 0.7:
        key = rng.choice(list(value))
        changed = {**value, key: damaged(value[key], rng)}
        return rng.choice((changed, changed, {**value, "extra": 1}, {}, list(value.values())))
    array = np.asarray(value)
    numbers = array.astype(np.float64) if array.dtype.kind in "iufb" else np.zeros(3)
    return rng.choice((
        None, "text", b"bytes", object(), {}, [], [[1], [1, 2]], np.array(["a"]), 10**30, -1,
        numbers * np.nan, numbers + np.inf, numbers * 1e300, numbers[None], numbers[None, None],
        np.zeros((0, *numbers.shape)), numbers.astype(object), numbers.astype(complex),
        array.astype(str), np.ma.masked_array(numbers, True), torch.as_tensor(numbers),
    ))  # fmt: skip


def trained(rng: random.Random) -> tuple[str, Outcome]:
    """Train in a random space, then act on damaged observations."""
    observations, actions = observation_space(rng), action_space(rng)
    kind = type(observations).__name__
    agents = list[mtxl_rl.Agent]()

    def train() -> None:
        run = mtxl_rl.train(
            lambda: RandomEnv(observations, actions),
            OPTIONS,
            run_dir="run",
            total_steps=32,
            verbose=False,
        )
        agents.append(run.agent)

    outcome = call(train, accepted="trained")
    if outcome.name != "trained":
        detail = f"{observations}, {actions}: {outcome.detail}"
        return kind, outcome._replace(detail=detail)
    agent = agents[0]
    for _ in range(6):
        legal = call(lambda: agent.act(agent.observation_space.sample()))
        if legal.name != "accepted":
            return kind, Outcome("failed", f"{observations}: a legal observation: {legal.detail}")
        observation = damaged(agent.observation_space.sample(), rng)
        outcome = call(lambda value=observation: agent.act(value))
        if outcome.name == "failed":
            return kind, outcome._replace(
                detail=f"{observations}, {observation!r}: {outcome.detail}"
            )
    return kind, Outcome("trained")


def prompted(rng: random.Random, model: MemoryTransformerXL) -> tuple[str, Outcome]:
    """Continue a random prompt."""
    length = rng.choice((1, 7, 7, 9, 0, -2))
    if rng.random() < 0.4:
        letters = rng.choice((string.printable, "äß漢😀\x00\u202e", "a\ud800"))
        text = "".join(rng.choice(letters) for _ in range(rng.choice((1, 9, 200, 0))))
        return "text", call(lambda: generate(model, text, length=length))
    shape = (rng.choice((1, 3, 0)), rng.choice((1, 5, 40, 0)))[: rng.choice((2, 2, 2, 1))]
    tokens = torch.randint(rng.choice((0, 0, 0, -1)), rng.choice((11, 256, 256, 2**40)), shape)
    tokens = tokens.to(rng.choice((torch.int64, torch.int64, torch.int32, torch.float32)))
    temperature = rng.choice((0.0, 0.5, 1.0, -1.0, np.nan))
    wrapper = CausalLM(model)
    return "tokens", call(lambda: wrapper.generate(tokens, length, temperature=temperature))


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Draw spaces and prompts."""
    torch.set_num_threads(1)
    counts = Counts("spaces")
    for case in cases(arguments, arguments.spaces):
        kind, outcome = trained(random.Random(f"{arguments.seed}/{case}/spaces"))
        shutil.rmtree(Path("run"), ignore_errors=True)
        counts.add(kind, f"case {case}", outcome)
    model = MemoryTransformerXL(256, dim=16, depth=1, seq_len=8, mem_len=8, lmem_len=8, heads=2)
    prompts = Counts("prompts")
    for case in cases(arguments, arguments.prompts):
        kind, outcome = prompted(random.Random(f"{arguments.seed}/{case}/prompts"), model)
        prompts.add(kind, f"case {case}", outcome)
    return [counts, prompts]


if __name__ == "__main__":
    run_program(__doc__, {"spaces": 1000, "prompts": 1000}, run)
