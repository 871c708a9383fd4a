"""Tasks are solved by who remembers and not by who does not: both computed, not learned.

The perfect agents here act on observations alone, through what they wrote down earlier in the
episode. Where actions do not change what is seen, the best agent without memory is computed: for
each observation the action that pays best on average. Where they do, agents without memory are
played, and their chance is worked out by hand. ColorCubes and GridMemoryMaze have theirs in their
own tests.
"""

from collections import defaultdict
from typing import Any, Protocol

import numpy as np
import pytest

from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.vector_task import VectorTask


def make(name: str, *, num_envs: int, seed: int = 0, **settings: Any) -> VectorTask:  # noqa: ANN401
    task = TASKS[name]
    config = task.config(**settings)
    return task.task_class(config, num_envs=num_envs, seed=seed)  # type: ignore[call-arg]


class Agent(Protocol):
    """A perfect agent of one environment."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """The next action; called once a step, in order."""
        ...


class TMazeAgent:
    """Keeps the cue."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Turn to where the cue was."""
        if observation[:2].any():
            self.cue = int(observation[1])
        return self.cue


class ActiveTMazeAgent:
    """Fetches the cue, keeps it."""

    cue = -1

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Back to the cue, forward to the junction, turn."""
        if observation[:2].any():
            self.cue = int(observation[1])
        at_junction = bool(observation[2])
        return self.cue if at_junction else 3 if self.cue < 0 else 2


class EndlessTMazeAgent:
    """Keeps the newest cue; knows the junction by the corridor's length."""

    cue = 0

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Forward, and turn at the end."""
        if observation[1:].any():
            self.cue = int(observation[2])
        return 1 + self.cue if observation[0] == 1 else 0


class MemoryChainAgent:
    """Keeps the bits."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """The bit that is asked; until then any answer will do."""
        if observation[2:].any():
            self.bits = observation[2:]
        return int(self.bits[int(observation[1])] > 0)


class CardsAgent:
    """Keeps every card."""

    def __init__(self) -> None:
        self.seen: list[Any] = []


class RepeatFirstAgent(CardsAgent):
    """The first card."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Return it."""
        self.seen.append(int(observation))
        return self.seen[0]


class RepeatPreviousAgent(CardsAgent):
    """The card three steps ago."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Return it."""
        self.seen.append(int(observation))
        return self.seen[-4] if len(self.seen) >= 4 else 0


class AutoencodeAgent(CardsAgent):
    """All cards, as a stack."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Take from the top."""
        watches, suit = observation
        if watches or len(self.seen) == 51:
            self.seen.append(int(suit))
        return 0 if watches else self.pop()

    def pop(self) -> int:
        """The newest card, which stays as a mark so that the stack is filled once only."""
        self.taken = getattr(self, "taken", 0) + 1
        return self.seen[-self.taken]


class CountRecallAgent(CardsAgent):
    """Counts."""

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """How many of the kind asked."""
        self.seen.append(int(observation[0]))
        return self.seen.count(int(observation[1]))


class MortarMayhemAgent:
    """Records the commands, then walks them relative to its own direction."""

    def __init__(self) -> None:
        self.commands: list[int] = []
        self.last_sign, self.index, self.goal = -1, -1, -1

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """Note the sign; or go to the next command's tile; stand still while others are deadly."""
        tile, heading = int(observation[:25].argmax()), int(observation[25:29].argmax())
        sign = int(observation[29:34].argmax()) if observation[29:34].any() else -1
        if sign >= 0 and sign != self.last_sign:
            self.commands.append(sign)
        self.last_sign = sign
        is_deadly = observation[34:].any()
        if len(self.commands) < 10 or sign >= 0 or is_deadly:
            self.was_deadly = bool(is_deadly)
            return 0
        if self.goal < 0 or self.was_deadly:
            self.index += 1
            column, row = divmod(tile, 5)
            across, down = [(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)][self.commands[self.index]]
            self.goal = (column + across) * 5 + row + down
            self.was_deadly = False
        return toward(tile, self.goal, heading, size=5)


class MysteryPathAgent:
    """Searches the grid depth first, and writes down where it fell."""

    def __init__(self) -> None:
        self.fallen: set[int] = set()
        self.safe: set[int] = set()
        self.route: list[int] = []

    def act(self, observation: Any) -> int:  # noqa: ANN401
        """To the nearest cell that was not tried, over cells that are safe."""
        cell, heading = int(observation[:49].argmax()), int(observation[49:53].argmax())
        if observation[53]:
            self.fallen.add(cell)
            return 0
        self.safe.add(cell)
        return toward(cell, self.next_cell(cell), heading, size=7)

    def next_cell(self, cell: int) -> int:
        """The first step of the shortest way to a cell that is new."""
        ways, seen = [[cell]], {cell}
        while ways:
            way = ways.pop(0)
            for neighbour in neighbours(way[-1], size=7):
                if neighbour in seen or neighbour in self.fallen:
                    continue
                if neighbour not in self.safe:
                    return [*way, neighbour][1]
                seen.add(neighbour)
                ways.append([*way, neighbour])
        raise AssertionError("every cell was tried")


def neighbours(cell: int, *, size: int) -> list[int]:
    column, row = divmod(cell, size)
    adjacent = [(column, row - 1), (column - 1, row), (column, row + 1), (column + 1, row)]
    return [c * size + r for c, r in adjacent if 0 <= c < size and 0 <= r < size]


def toward(cell: int, goal: int, heading: int, *, size: int) -> int:
    """Turn or step to an adjacent cell; stay if it is the agent's own."""
    way = {-1: 0, -size: 1, 1: 2, size: 3}.get(goal - cell)
    if way is None:
        return 0
    return [3, 1, 1, 2][(way - heading) % 4]


PERFECT: dict[str, tuple[type[Any], float]] = {
    "TMaze": (TMazeAgent, 1),
    "ActiveTMaze": (ActiveTMazeAgent, 1),
    "EndlessTMaze": (EndlessTMazeAgent, 5 - 50 * 0.01),
    "MemoryChain": (MemoryChainAgent, 1),
    "RepeatFirst": (RepeatFirstAgent, 1),
    "RepeatPrevious": (RepeatPreviousAgent, 1),
    "Autoencode": (AutoencodeAgent, 1),
    "CountRecall": (CountRecallAgent, 1),
    "MortarMayhem": (MortarMayhemAgent, 1),
}


def play(env: VectorTask, agents: list[Agent]) -> tuple[np.ndarray, np.ndarray]:
    """Return and success of one episode in each environment."""
    observations, _ = env.reset()
    returns, success = np.zeros(env.num_envs), np.zeros(env.num_envs)
    running = np.ones(env.num_envs, dtype=np.bool_)
    while running.any():
        actions = np.array([
            agent.act(observation) if runs else 0
            for agent, observation, runs in zip(agents, observations, running, strict=True)
        ])  # fmt: skip
        observations, rewards, terminated, truncated, infos = env.step(actions)
        returns += rewards * running
        ended = running & (terminated | truncated)
        if ended.any():
            success[ended] = infos["success"][ended]
        running &= ~ended
    return returns, success


@pytest.mark.parametrize("name", PERFECT)
def test_who_remembers_gets_the_greatest_return(name: str) -> None:
    agent_class, best = PERFECT[name]
    env = make(name, num_envs=16)
    returns, success = play(env, [agent_class() for _ in range(16)])
    np.testing.assert_allclose(returns, best, atol=1e-5)
    assert (success == 1).all()
    described = env.config.describe()  # type: ignore[attr-defined]
    assert described.reward_range[1] == pytest.approx(best)


@pytest.mark.training
def test_who_remembers_its_falls_crosses_most_mystery_paths_in_time() -> None:
    _, success = play(make("MysteryPath", num_envs=24), [MysteryPathAgent() for _ in range(24)])
    assert success.mean() > 0.7


def test_who_does_not_remember_its_falls_rarely_crosses_a_mystery_path() -> None:
    env = make("MysteryPath", num_envs=128)
    rng = np.random.default_rng(0)
    env.reset()
    success = np.zeros(128)
    for _ in range(128):
        step = env.step(rng.choice(4, size=128, p=[0, 0.25, 0.25, 0.5]))
        if step[4]:
            success = np.maximum(success, step[4]["success"])
    assert success.mean() < 0.1


# What chance gives: half the coin flips; a quarter of four suits, up to the hypergeometric edge of
# seeing one card; for counts, the commonest count given one card.
CHANCE: dict[str, tuple[dict[str, Any], float]] = {
    "TMaze": ({"corridor_length": 5}, 0.0),
    "MemoryChain": ({"memory_length": 5}, 0.0),
    "RepeatFirst": ({"difficulty": "easy"}, -0.5),
    "RepeatPrevious": ({"difficulty": "easy"}, -0.48),
    "Autoencode": ({"difficulty": "easy"}, -0.47),
    "CountRecall": ({"difficulty": "easy"}, -0.9),
}


@pytest.mark.parametrize("name", CHANCE)
def test_the_best_agent_without_memory_gets_what_chance_gives(name: str) -> None:
    settings, chance = CHANCE[name]
    env = make(name, num_envs=3000, **settings)
    assert best_return_without_memory(env) == pytest.approx(chance, abs=0.05)


def best_return_without_memory(env: VectorTask) -> float:
    """The best return of a policy from observations to actions.

    In these tasks actions change no observation. So with actions drawn evenly, the mean reward of
    an observation and an action is what the action pays there, and the best policy takes the best
    action everywhere.
    """
    rng = np.random.default_rng(0)
    total: dict[bytes, np.ndarray] = defaultdict(lambda: np.zeros(env.num_actions))
    observations, _ = env.reset()
    terminated = np.zeros(env.num_envs, dtype=np.bool_)
    while not terminated.any():
        actions = rng.integers(env.num_actions, size=env.num_envs)
        next_observations, rewards, terminated, _, _ = env.step(actions)
        keys = observations.reshape(env.num_envs, -1)
        kinds, kind = np.unique(keys, axis=0, return_inverse=True)
        sums = np.zeros((len(kinds), env.num_actions))
        np.add.at(sums, (kind.ravel(), actions), rewards)
        for key, reward_sum in zip(kinds, sums, strict=True):
            total[key.tobytes()] += reward_sum
        observations = next_observations
    assert terminated.all()
    return sum(paid.max() for paid in total.values()) * env.num_actions / env.num_envs


def test_turning_at_random_passes_half_the_corridors_each_time() -> None:
    env = make("EndlessTMaze", num_envs=4000, corridor_length=2, num_corridors=3)
    rng = np.random.default_rng(0)
    observations, _ = env.reset()
    success, running = np.zeros(4000), np.ones(4000, dtype=np.bool_)
    for _ in range(9):
        turn = rng.integers(1, 3, size=4000)
        step = env.step(np.where(observations[:, 0] == 1, turn, 0))
        ended = running & step[2]
        if ended.any():
            success[ended] = step[4]["success"][ended]
        running &= ~ended
        observations = step[0]
    assert not running.any()
    assert success.mean() == pytest.approx(1 / 8, abs=0.03)


def test_without_memory_a_mortar_command_is_a_guess_among_five() -> None:
    env = make("MortarMayhem", num_envs=3000, num_commands=1)
    env.reset()
    for _ in range(env.config.describe().horizon - 1):  # type: ignore[attr-defined]
        env.step(np.zeros(3000, dtype=np.int64))
    _, rewards, _, _, infos = env.step(np.zeros(3000, dtype=np.int64))
    np.testing.assert_array_equal(infos["success"], rewards > 0)
    # Staying is right if the command was "stay": 1 of 5 inside, of 4 at an edge, of 3 in a corner.
    share = (9 / 5 + 12 / 4 + 4 / 3) / 25
    assert (rewards > 0).mean() == pytest.approx(share, abs=0.04)
