"""The tasks' observations, rewards and ends equal those of the packages they come from.

An episode of the original is recorded, the deck or bits that it drew are written into our task's
state, and the same actions are played. `golden/originals.npz` stores such records, so that the
rules are tested where the packages are not installed. `python tests/envs/tasks/test_originals.py`
rewrites the file; the commit must explain why.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.path_layout import NUM_SEARCH_DRAWS, NUM_WALL_DRAWS, draw_walls, lay_path
from mtxl_rl.envs.tasks.vector_task import VectorTask

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


class MemoryGym:
    """A grid of Memory Gym whose observation is our symbolic view of it."""

    HEADINGS = np.eye(4)

    def __init__(self, module: str, name: str, seed: int) -> None:
        self.env = getattr(importlib.import_module(f"memory_gym.{module}"), name)()
        self.image = self.env.reset(seed=seed)[0]
        self.sign = ""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; Memory Gym ends episodes by termination only."""
        shows = getattr(self.env, "_command_visualization", [])
        self.sign = shows[0] if shows else ""
        self.image, reward, ends, _, info = self.env.step(action)
        at_limit = isinstance(self, MysteryPathGrid) and not info.get("success", True)
        return self.observe(), reward, ends and not at_limit, ends and at_limit, info

    def observe(self) -> np.ndarray:
        """The symbolic view."""
        raise NotImplementedError

    def cell(self) -> list[int]:
        """Column and row."""
        return [int(axis) for axis in self.env.normalized_agent_position]

    def one_hot(self, cell: Any, size: int) -> np.ndarray:  # noqa: ANN401
        """A cell as column * size + row."""
        return np.eye(size * size)[int(cell[0]) * size + int(cell[1])]

    def toward(self, target: Any) -> int:  # noqa: ANN401
        """The action that leads to the adjacent cell."""
        way = np.subtract(target, self.cell()).astype(int).tolist()
        if way not in [[0, -1], [-1, 0], [0, 1], [1, 0]]:
            return 0
        turn = ([[0, -1], [-1, 0], [0, 1], [1, 0]].index(way) - self.env.agent.rotation // 90) % 4
        return [3, 1, 1, 2][turn]


class MortarMayhemGrid(MemoryGym):
    """Mortar Mayhem; `hidden` is what it drew."""

    def __init__(self, seed: int) -> None:
        super().__init__("mortar_mayhem_grid", "GridMortarMayhemEnv", seed)
        self.sign = self.env._commands[0]
        self.names = list(importlib.import_module("memory_gym.pygame_assets").Command.COMMANDS)[:5]
        commands = [self.names.index(name) for name in self.env._commands]
        steps = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])[commands]
        targets = np.array(self.cell()) + np.cumsum(steps, axis=0)
        self.hidden = {
            "tile": self.one_hot(self.cell(), 5).argmax(),
            "commands": np.array(commands),
            "targets": targets[:, 0] * 5 + targets[:, 1],
            "sign": np.array(commands[0]),
        }

    def observe(self) -> np.ndarray:
        """Tile, heading, command shown, safe tile."""
        sign = np.eye(6)[self.names.index(self.sign) if self.sign else 5][:5]
        is_deadly = self.env.arena.tiles_on
        safe = self.one_hot(self.env._target_pos, 5) if is_deadly else np.zeros(25)
        heading = self.HEADINGS[self.env.agent.rotation // 90]
        return np.concatenate([self.one_hot(self.cell(), 5), heading, sign, safe])

    def act(self, rng: np.random.Generator, errors: float) -> int:
        """Obey, but for errors."""
        if rng.random() < errors:
            return int(rng.integers(4))
        return 0 if self.env.arena.tiles_on else self.toward(self.env._target_pos)


class MysteryPathGrid(MemoryGym):
    """Mystery Path; `hidden` is what it drew."""

    def __init__(self, seed: int) -> None:
        super().__init__("mystery_path_grid", "GridMysteryPathEnv", seed)
        self.way = [(node.x, node.y) for node in reversed(self.env.mystery_path.path)]
        is_path = np.zeros(49, dtype=np.bool_)
        is_path[[x * 7 + y for x, y in self.way]] = True
        self.hidden = {
            "cell": self.one_hot(self.cell(), 7).argmax(),
            "start": self.one_hot(self.env.start, 7).argmax(),
            "end": self.one_hot(self.env.end, 7).argmax(),
            "is_path": is_path,
        }

    def observe(self) -> np.ndarray:
        """Cell, heading, whether it fell."""
        heading = self.HEADINGS[self.env.agent.rotation // 90]
        fallen = [float(self.env.is_off_path)]
        return np.concatenate([self.one_hot(self.cell(), 7), heading, fallen])

    def act(self, rng: np.random.Generator, errors: float) -> int:
        """Follow the path, but for errors."""
        if rng.random() < errors or tuple(self.cell()) not in self.way:
            return int(rng.integers(4))
        return self.toward(self.way[self.way.index(tuple(self.cell())) + 1])


def memory_gym(name: str, *, seed: int) -> Record:
    """An episode of a grid of Memory Gym; every third one is played without errors."""
    env = {"MortarMayhem": MortarMayhemGrid, "MysteryPath": MysteryPathGrid}[name](seed)
    errors = (0.0, 0.02, 0.5)[seed % 3]
    return play(
        env, env.observe(), env.hidden, act=lambda game, rng: game.act(rng, errors), seed=seed
    )


CARDS = ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "Concentration")
GRIDS = ("MortarMayhem", "MysteryPath")
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
    return task.task_class(task.config(**settings), num_envs=1, seed=0)  # type: ignore[call-arg]


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


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_those_of_memory_gym(name: str) -> None:
    pytest.importorskip("memory_gym")
    env = ours(name)
    for seed in range(9):
        replay(env, memory_gym(name, seed=seed))


@pytest.mark.parametrize("name", GRIDS)
def test_pictures_are_nearly_those_of_memory_gym(name: str) -> None:
    pytest.importorskip("memory_gym")
    env = ours(name, view="image")
    env.reset()
    original = {"MortarMayhem": MortarMayhemGrid, "MysteryPath": MysteryPathGrid}[name](4)
    state = env.get_state() | {key: value[None] for key, value in original.hidden.items()}
    env.set_state(state)
    ours_now, rng, differences = env._observe(), np.random.default_rng(0), []
    for _ in range(60):
        original_image = original.image.swapaxes(0, 1).astype(int)
        differences.append((np.abs(ours_now[0] - original_image).max(axis=2) > 8).mean())
        action = original.act(rng, 0.2)
        if any(original.step(action)[2:4]):
            break
        ours_now = env.step(np.array([action]))[0]
    # The rims of discs and lines: some 20 of the 7,056 pixels.
    assert max(differences) < 0.01


class CountingRng:
    """The random numbers of Memory Gym's path search, kept."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.costs: list[int] = []

    def integers(self, low: int, high: int) -> int:
        """As a NumPy generator's."""
        drawn = int(self.rng.integers(low, high))
        if (low, high) == (1, 9):
            self.costs.append(drawn)
        return drawn

    def choice(self, items: Any) -> Any:  # noqa: ANN401
        """As a NumPy generator's."""
        return items[int(self.rng.integers(len(items)))]


def original_path(seed: int, start: int, end: int) -> tuple[set[int], np.ndarray, CountingRng]:
    """Cells of a path, walls and draws of Memory Gym."""
    assets, rng = importlib.import_module("memory_gym.pygame_assets"), CountingRng(seed)
    path = assets.MysteryPath(7, 7, divmod(start, 7), divmod(end, 7), rng)
    is_wall = np.zeros(50, dtype=np.bool_)
    is_wall[[49, *(node.x * 7 + node.y for node in path.wall_nodes)]] = True
    return {node.x * 7 + node.y for node in path.path}, is_wall, rng


def test_between_the_same_walls_the_path_is_that_of_memory_gym() -> None:
    pytest.importorskip("memory_gym")
    for seed in range(200):
        start, end = seed % 7, 42 + seed // 7 % 7
        expected, is_wall, rng = original_path(seed, start, end)
        draws = np.zeros(NUM_SEARCH_DRAWS)
        draws[: len(rng.costs)] = (np.array(rng.costs) - 0.5) / 8
        path = lay_path(draws, start=start, end=end, is_wall=is_wall)
        assert set(np.flatnonzero(path)) == expected


def test_walls_are_where_memory_gym_puts_them_as_often() -> None:
    pytest.importorskip("memory_gym")
    count, start, end = 1000, 3, 42 + 1
    expected = np.mean([original_path(seed, start, end)[1] for seed in range(count)], axis=0)
    draws = np.random.default_rng(0).random((count, NUM_WALL_DRAWS))
    points = {"start": np.full(count, start), "end": np.full(count, end)}
    np.testing.assert_allclose(draw_walls(draws, **points).mean(axis=0), expected, atol=0.08)


def golden_records() -> dict[str, tuple[str, dict[str, Any], Callable[[], Record]]]:
    """What the golden file holds: our task, its settings, and how to record the original anew."""
    records: dict[str, tuple[str, dict[str, Any], Callable[[], Record]]] = {}
    for name in CARDS:
        records[name] = (name, {"difficulty": "easy"}, lambda n=name: popgym(n, "easy", seed=0))
    for name in GRIDS:
        for seed in range(3):
            records[f"{name} {seed}"] = (
                name, {}, lambda n=name, s=seed: memory_gym(n, seed=s)
            )  # fmt: skip
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
            is_whole = value.dtype.kind in "if" and (value == value.astype(np.int16)).all()
            small = value.astype(np.int16) if is_whole else value
            arrays[f"{key}/{name}"] = small
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)
    sys.stdout.write(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    write_golden()
