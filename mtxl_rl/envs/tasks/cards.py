"""POPGym's card games: RepeatFirst, RepeatPrevious, Autoencode and CountRecall.

Source: Morad et al. (2023), "POPGym: Benchmarking Partially Observable Reinforcement Learning",
https://openreview.net/forum?id=chDrutUTs0K. Rules, rewards, episode lengths and difficulties equal
popgym 1.0.7; its tuple observations are MultiDiscrete here. `concentration.py` holds a fifth game.

Rules: shuffled decks of 52 cards (4 suits of 13 ranks, half of each colour) are dealt card by card.
The agent answers a question about the cards it has seen. n is the number of cards.

============== ============================= =================================== ==============
task           question                      observation                         episode length
============== ============================= =================================== ==============
RepeatFirst    the first card's suit         suit of the card just dealt         n - 1
RepeatPrevious the suit k - 1 cards before   suit of the card just dealt         n - 1
Autoencode     the suits, last card first,   [1 while cards are shown, else 0;   2n - 1
               once all cards were shown     suit, 0 once all were shown]
CountRecall    how many cards of a kind were [kind just dealt, kind asked about] n - 1
               dealt, the newest included
============== ============================= =================================== ==============

Action: the answer, a suit (0 .. 3) or for CountRecall a count (0 .. cards of one kind).
Reward: 1 / questions for a right answer, -1 / questions for a wrong one. The return is -1 .. 1.

========================= ======== ======== ========
decks (kinds, or k)       easy     medium   hard
========================= ======== ======== ========
RepeatFirst               1        8        16
RepeatPrevious (k)        1 (4)    2 (32)   3 (64)
Autoencode                1        2        3
CountRecall (kinds)       1 (2)    2 (4)    4 (13)
Concentration (kinds)     1 (2)    2 (2)    1 (13)
========================= ======== ======== ========
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import (
    BLACK,
    BLUE,
    GREEN,
    WHITE,
    YELLOW,
    Card,
    Image,
    cells,
    draw_cards,
)
from mtxl_rl.envs.tasks.vector_task import Flags, Outcome, TaskDescription, VectorTask

DIFFICULTIES = ("easy", "medium", "hard")
NUM_SUITS = 4
DECK = 52


class _Game(NamedTuple):
    """Numbers of one card game at the difficulties easy, medium and hard."""

    num_decks: tuple[int, int, int]
    num_kinds: tuple[int, int, int] = (NUM_SUITS,) * 3
    lag: tuple[int, int, int] = (0, 0, 0)


_GAMES = {
    "RepeatFirst": _Game((1, 8, 16)),
    "RepeatPrevious": _Game((1, 2, 3), lag=(4, 32, 64)),
    "Autoencode": _Game((1, 2, 3)),
    "CountRecall": _Game((1, 2, 4), num_kinds=(2, 4, 13)),
    "Concentration": _Game((1, 2, 1), num_kinds=(2, 2, 13)),
}


@dataclass(kw_only=True, slots=True)
class CardConfig:
    """Options of POPGym's card games."""

    name: str
    """RepeatFirst, RepeatPrevious, Autoencode, CountRecall or Concentration."""
    difficulty: str = "easy"
    """easy, medium or hard: how many decks, kinds of cards or cards back."""

    def __post_init__(self) -> None:
        check_choice("env.name", self.name, tuple(_GAMES))
        check_choice("env.difficulty", self.difficulty, DIFFICULTIES)

    def _of_difficulty(self, numbers: tuple[int, int, int]) -> int:
        return numbers[DIFFICULTIES.index(self.difficulty)]

    @property
    def num_cards(self) -> int:
        """Cards in an episode."""
        return DECK * self._of_difficulty(_GAMES[self.name].num_decks)

    @property
    def num_kinds(self) -> int:
        """Kinds of cards: 2 colours, 4 suits or 13 ranks."""
        return self._of_difficulty(_GAMES[self.name].num_kinds)

    @property
    def k(self) -> int:
        """Which card RepeatPrevious asks about: 1 is the one just dealt; 0 in other games."""
        return self._of_difficulty(_GAMES[self.name].lag)

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        if self.name == "Autoencode":
            return 2 * self.num_cards - 1
        if self.name == "Concentration":
            # POPGym's limit: the mean number of turns of a perfect player.
            return math.ceil(2 * self.num_cards - self.num_cards / (2 * self.num_cards - 1))
        return self.num_cards - 1

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode; 0 for Concentration, where the length depends on the agent."""
        return 0 if self.name == "Concentration" else self.max_steps

    def describe(self) -> TaskDescription:
        """Return what the task demands of an agent."""
        remembered = {
            "RepeatFirst": "the first card's suit",
            "RepeatPrevious": f"the suits of the last {self.k} cards in order",
            "Autoencode": f"the suits of {self.num_cards} cards in order",
            "CountRecall": f"counts of {self.num_kinds} kinds of cards",
            "Concentration": f"the kinds ({self.num_kinds}) and places of {self.num_cards} cards",
        }
        return TaskDescription(
            horizon=self.max_steps,
            reward_range=(-1.0, 1.0),
            remembered=remembered[self.name],
            memory_window=self.k - 1 if self.name == "RepeatPrevious" else self.max_steps - 1,
        )


class CardTask(VectorTask):
    """A shuffled deck and a question about it in every step.

    A subclass implements `_asked_card`, or `_question` if the answer is not the kind of a card. The
    observation is the kind of the card just dealt unless a subclass overrides `_observe`.
    """

    state_names: ClassVar[tuple[str, ...]] = ("deck", "num_right")

    def __init__(
        self,
        config: CardConfig,
        *,
        num_envs: int,
        seed: int | Sequence[int],
        num_questions: int,
        observation_space: spaces.Space[Any] | None = None,
        num_actions: int = NUM_SUITS,
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=observation_space or spaces.Discrete(config.num_kinds),
            num_actions=num_actions,
        )
        self.num_cards, self.num_kinds = config.num_cards, config.num_kinds
        self.max_steps = config.max_steps
        self.num_questions = num_questions
        self.deck = np.zeros((num_envs, self.num_cards), dtype=np.int64)
        """Kinds of the cards in dealing order."""
        self.num_right = np.zeros(num_envs, dtype=np.int64)

    def _queried_card(self) -> NDArray[Any]:
        """Return the index of the card asked about, [B]; negative where no question is asked."""
        return np.full(self.num_envs, -1)

    def _question(self, live: Flags) -> tuple[NDArray[Any], Flags]:
        """Return the right answers and where a question is asked; called once in each step."""
        card = self._queried_card()
        return self.deck[self.all_rows, np.maximum(card, 0)], live & (card >= 0)

    def _start(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % self.num_kinds
        self.num_right[rows] = 0

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        answers, is_queried = self._question(live)
        is_right = actions == answers
        self.num_right += is_right & is_queried
        rewards = np.where(is_queried, np.where(is_right, 1, -1), 0) / self.num_questions
        is_last = self.step_index == self.max_steps - 1
        return Outcome(
            rewards, is_last, np.zeros_like(is_last), self.num_right / self.num_questions
        )

    def _observe(self) -> NDArray[np.int64]:
        return self.deck[self.all_rows, self.step_index]

    def _draw(self, row: int) -> Image:
        """The deck: dealt cards face up, the newest in yellow, the one asked about in green."""
        step, queried = int(self.step_index[row]), int(self._queried_card()[row])
        cards = [
            Card(
                int(kind),
                paper=BLUE if index > step else YELLOW if index == step else WHITE,
                edge=GREEN if index == queried else BLACK,
                is_face_up=index <= step,
            )
            for index, kind in enumerate(self.deck[row])
        ]
        return draw_cards(cards, num_kinds=self.num_kinds)


class RepeatFirst(CardTask):
    """Answer the first card's suit in every step; see the module's docstring."""

    def __init__(self, config: CardConfig, *, num_envs: int, seed: int | Sequence[int] = 0) -> None:
        super().__init__(config, num_envs=num_envs, seed=seed, num_questions=config.num_cards - 1)

    def _queried_card(self) -> NDArray[Any]:
        return np.zeros(self.num_envs, dtype=np.int64)


class RepeatPrevious(CardTask):
    """Answer the suit of the card dealt k - 1 steps ago, from the k-th card on."""

    def __init__(self, config: CardConfig, *, num_envs: int, seed: int | Sequence[int] = 0) -> None:
        num_questions = config.num_cards - config.k
        super().__init__(config, num_envs=num_envs, seed=seed, num_questions=num_questions)
        self.k = config.k

    def _queried_card(self) -> NDArray[Any]:
        return self.step_index - (self.k - 1)


class Autoencode(CardTask):
    """Watch a deck card by card, then answer its suits in reverse order."""

    def __init__(self, config: CardConfig, *, num_envs: int, seed: int | Sequence[int] = 0) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            num_questions=config.num_cards,
            observation_space=spaces.MultiDiscrete([2, NUM_SUITS]),
        )

    def _queried_card(self) -> NDArray[Any]:
        # The last card is asked in step num_cards - 1, the first in step 2 * num_cards - 2.
        first_question = self.num_cards - 1
        return np.where(self.step_index >= first_question, 2 * first_question - self.step_index, -1)

    def _observe(self) -> NDArray[np.int64]:
        last = self.num_cards - 1
        suit = self.deck[self.all_rows, np.minimum(self.step_index, last)]
        shown = np.where(self.step_index <= last, suit, 0)
        return np.stack([(self.step_index < last).astype(np.int64), shown], axis=1)


class CountRecall(CardTask):
    """Answer how many cards of the kind asked about have been dealt."""

    state_names = ("deck", "queries", "counts", "num_right")

    def __init__(self, config: CardConfig, *, num_envs: int, seed: int | Sequence[int] = 0) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            num_questions=config.num_cards - 1,
            observation_space=spaces.MultiDiscrete([config.num_kinds] * 2),
            num_actions=config.num_cards // config.num_kinds + 1,
        )
        self.queries = np.zeros((num_envs, self.num_cards), dtype=np.int64)
        """The kind asked about in each step."""
        self.counts = np.zeros((num_envs, self.num_kinds), dtype=np.int64)
        """Cards of each kind dealt before the newest one."""

    def _start(self, rows: Rows) -> None:
        super()._start(rows)
        self.queries[rows] = self.streams.permutations(rows, self.num_cards) % self.num_kinds
        self.counts[rows] = 0

    def _question(self, live: Flags) -> tuple[NDArray[Any], Flags]:
        rows, step = self.all_rows, self.step_index
        self.counts[rows, self.deck[rows, step]] += live
        return self.counts[rows, self.queries[rows, step]], live

    def _observe(self) -> NDArray[np.int64]:
        rows, step = self.all_rows, self.step_index
        return np.stack([self.deck[rows, step], self.queries[rows, step]], axis=1)

    def _draw(self, row: int) -> Image:
        """The deck; below it the kind asked about and, on green, the dealt cards of that kind."""
        step = int(self.step_index[row])
        query = int(self.queries[row, step])
        count = int((self.deck[row, : step + 1] == query).sum())
        counted = [Card(query), *[Card(query, paper=GREEN)] * count]
        deck, answer = super()._draw(row), draw_cards(counted, num_kinds=self.num_kinds)
        gap = cells(12, deck.shape[1])
        padding = ((0, 0), (0, deck.shape[1] - answer.shape[1]), (0, 0))
        return np.concatenate([deck, gap, np.pad(answer, padding)])
