"""Our tasks against the packages they come from: equal observations, rewards and ends.

An episode of the original is recorded, what it drew (a deck, bits) is put into our task's state,
and our task is led through the same actions. `golden/originals.npz` holds such records, so the
rules are held where the packages are not installed; `python tests/envs/test_originals.py` writes it
anew, which needs a reason in the commit.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mtxl_rl.envs.tasks import TASKS
from mtxl_rl.envs.vector_task import VectorTask

GOLDEN = Path(__file__).parent / "golden" / "originals.npz"


class Record(NamedTuple):
    """An episode of an original; the first observation is the reset's."""

    hidden: dict[str, np.ndarray]
    actions: np.ndarray
    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


Policy = Callable[[Any, np.random.Generator], int]


def play(env: Any, first: Any, hidden: dict[str, Any], *, act: Policy, seed: int) -> Record:  # noqa: ANN401
    """An episode of a Gymnasium environment that was just reset."""
    rng = np.random.default_rng(seed)
    actions, observations, rewards, ends = [], [first], [], []
    while not ends or not any(ends[-1]):
        actions.append(act(env, rng))
        observation, reward, *end, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        ends.append(end)
    flags = np.array(ends, dtype=np.bool_)
    return Record(
        {name: np.array(value) for name, value in hidden.items()},
        np.array(actions),
        np.array(observations),
        np.array(rewards, dtype=np.float32),
        flags[:, 0],
        flags[:, 1],
    )


def popgym(name: str, difficulty: str, *, seed: int) -> Record:
    """An episode of a card game of POPGym."""
    module = {"RepeatFirst": "repeat_first", "RepeatPrevious": "repeat_previous"}.get(name)
    module = module or {"CountRecall": "count_recall"}.get(name, name.lower())
    game = getattr(
        importlib.import_module(f"popgym.envs.{module}"), name + difficulty.capitalize()
    )()
    first, _ = game.reset(seed=seed)
    if name == "CountRecall":
        # The last card of the original's deck is dealt first.
        hidden = {
            "deck": game.deck_idx_type[game.value_deck.idx][::-1],
            "queries": game.deck_idx_type[game.query_deck.idx][::-1],
        }
    elif name == "Concentration":
        hidden = {"deck": game.state}
    else:
        hidden = {"deck": game.deck.suits_idx[game.deck.idx][::-1]}
    return play(game, first, hidden, act=POPGYM_POLICIES.get(name, any_action), seed=seed)


def any_action(env: Any, rng: np.random.Generator) -> int:  # noqa: ANN401
    return int(rng.integers(env.action_space.n))


def count_half_the_time(env: Any, rng: np.random.Generator) -> int:  # noqa: ANN401
    return int(env.counts[env.query]) if rng.random() < 0.5 else any_action(env, rng)


def find_most_pairs(env: Any, rng: np.random.Generator) -> int:  # noqa: ANN401
    """Who sees the deck's other side, and errs now and then."""
    closed = np.flatnonzero(env.get_obs() == env.facedown_card)
    in_play = env.deck["in_play_idx"]
    same = [i for i in closed if in_play and env.state[i] == env.state[in_play[0]]]
    if rng.random() < 0.03 or not len(closed):
        return any_action(env, rng)
    return int(rng.choice(same or closed))


POPGYM_POLICIES: dict[str, Policy] = {
    "CountRecall": count_half_the_time,
    "Concentration": find_most_pairs,
}


class BSuite:
    """bsuite's memory chain behind Gymnasium's step."""

    def __init__(self, memory_length: int, num_bits: int, seed: int) -> None:
        chain = importlib.import_module("bsuite.environments.memory_chain")
        self.chain = chain.MemoryChain(memory_length, num_bits, seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; the chain only terminates."""
        step = self.chain.step(action)
        return step.observation[0], step.reward, step.last(), False, {}


def bsuite(memory_length: int, num_bits: int, *, seed: int) -> Record:
    """An episode of a memory chain."""
    env = BSuite(memory_length, num_bits, seed)
    first = env.chain.reset().observation[0]
    hidden = {"bits": env.chain._context, "query": env.chain._query}
    return play(env, first, hidden, act=lambda _, rng: int(rng.integers(2)), seed=seed)


CARDS = ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "Concentration")
CHAINS = ((1, 1), (2, 1), (7, 1), (3, 6))


def replay(env: VectorTask, record: Record) -> None:
    """Assert that one environment of ours goes through the record."""
    env.reset()
    state = env.get_state()
    for name, value in record.hidden.items():
        state[name] = value[None]
    env.set_state(state)
    np.testing.assert_array_equal(env._observe()[0], record.observations[0])
    for index, action in enumerate(record.actions):
        observation, reward, terminated, truncated, _ = env.step(np.array([action]))
        np.testing.assert_allclose(observation[0], record.observations[index + 1], atol=1e-7)
        np.testing.assert_allclose(reward[0], record.rewards[index], atol=1e-7)
        assert terminated[0] == record.terminated[index], index
        assert truncated[0] == record.truncated[index], index


def ours(name: str, **settings: Any) -> VectorTask:  # noqa: ANN401
    task = TASKS[name]
    return task.task_class(task.config_class(**settings), num_envs=1, seed=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
@pytest.mark.parametrize("name", CARDS)
def test_card_games_are_those_of_popgym(name: str, difficulty: str) -> None:
    pytest.importorskip("popgym")
    env = ours(name, difficulty=difficulty)
    for seed in range(3):
        replay(env, popgym(name, difficulty, seed=seed))


@pytest.mark.parametrize(("memory_length", "num_bits"), CHAINS)
def test_the_memory_chain_is_that_of_bsuite(memory_length: int, num_bits: int) -> None:
    pytest.importorskip("bsuite")
    env = ours("MemoryChain", memory_length=memory_length, num_bits=num_bits)
    for seed in range(8):
        replay(env, bsuite(memory_length, num_bits, seed=seed))


def golden_records() -> dict[str, tuple[str, dict[str, Any], Callable[[], Record]]]:
    """What the golden file holds: our task, its settings, and how to record the original anew."""
    records: dict[str, tuple[str, dict[str, Any], Callable[[], Record]]] = {}
    for name in CARDS:
        records[name] = (name, {"difficulty": "easy"}, lambda n=name: popgym(n, "easy", seed=0))
    for chain in CHAINS:
        length, bits = chain
        settings = {"memory_length": length, "num_bits": bits}
        records[f"MemoryChain {chain}"] = (
            "MemoryChain", settings, lambda c=chain: bsuite(*c, seed=0)
        )  # fmt: skip
    return records


@pytest.mark.parametrize("key", golden_records())
def test_the_stored_episodes_of_the_originals_are_ours(key: str) -> None:
    name, settings, _ = golden_records()[key]
    with np.load(GOLDEN) as stored:
        fields = {path.split("/")[1]: stored[path] for path in stored if path.split("/")[0] == key}
    hidden = {k.removeprefix("hidden."): v for k, v in fields.items() if k.startswith("hidden.")}
    rest = {k: v for k, v in fields.items() if not k.startswith("hidden.")}
    replay(ours(name, **settings), Record(hidden=hidden, **rest))


def write_golden() -> None:
    """Record the originals, which must be installed."""
    arrays: dict[str, np.ndarray] = {}
    for key, (_, _, record) in golden_records().items():
        fields = record()._asdict()
        hidden = {f"hidden.{name}": value for name, value in fields.pop("hidden").items()}
        for name, value in {**hidden, **fields}.items():
            small = value.astype(np.int16) if value.dtype.kind == "i" else value
            arrays[f"{key}/{name}"] = small
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)
    sys.stdout.write(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    write_golden()
