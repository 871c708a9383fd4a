"""POPGym's card games of memory: repeat the first, repeat a previous, autoencode, count.

Morad et al. (2023), "POPGym: Benchmarking Partially Observable Reinforcement Learning",
https://openreview.net/forum?id=chDrutUTs0K. Rules, rewards, lengths and the three difficulties are
those of popgym 1.0.7; observations that are tuples there are MultiDiscrete here. A deck is 52
cards: 4 suits of 13 ranks, half of each colour. Every game's best return is 1 and its worst -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.vector_task import Flags, Outcome, TaskDescription, VectorTask, check_choice

DIFFICULTIES = ("easy", "medium", "hard")
NUM_SUITS = 4
DECK = 52


def check_difficulty(difficulty: str) -> None:
    """Refuse a difficulty that is none of POPGym's."""
    check_choice("difficulty", difficulty, choices=DIFFICULTIES)


class Answers:
    """Right answers among the questions of an episode, and the rewards for them.

    Every question is worth the same: 1 / num_questions if right, else -1 / num_questions.
    """

    def __init__(self, num_questions: int) -> None:
        self.num_questions = num_questions

    def outcome(
        self, num_right: NDArray[Any], *, is_right: Flags, is_asked: Flags, is_last: Flags
    ) -> Outcome:
        """The step's outcome; `num_right` counts in place."""
        num_right += is_right & is_asked
        rewards = np.where(is_asked, np.where(is_right, 1, -1), 0) / self.num_questions
        return Outcome(rewards, is_last, np.zeros_like(is_last), num_right / self.num_questions)


class CardTask(VectorTask):
    """A shuffled deck, dealt card by card, and answers that are right or wrong.

    The cards' kinds are all that is told of them. The observation is the kind of the card just
    dealt unless a task says otherwise.
    """

    state_names: ClassVar[tuple[str, ...]] = ("deck", "num_right")

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - the task's own
        *,
        num_envs: int,
        seed: int | Sequence[int],
        observation_space: spaces.Space[Any],
        num_actions: int,
        num_kinds: int,
        num_questions: int,
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=observation_space,
            num_actions=num_actions,
        )
        self.num_cards: int = config.num_cards
        self.num_kinds = num_kinds
        self.deck = np.zeros((num_envs, self.num_cards), dtype=np.int64)
        """Kinds in the order in which they are dealt."""
        self.num_right = np.zeros(num_envs, dtype=np.int64)
        self._answers = Answers(num_questions)

    def _start(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % self.num_kinds
        self.num_right[rows] = 0

    def _observe(self) -> NDArray[np.int64]:
        return self.deck[self.all_rows, self.step_index]


@dataclass(kw_only=True, slots=True)
class RepeatFirstConfig:
    """What ``env=RepeatFirst`` takes."""

    name: str = "RepeatFirst"
    """The environment's name in the registry."""
    difficulty: str = "easy"
    """easy, medium or hard: 1, 8 or 16 decks."""

    def __post_init__(self) -> None:
        check_difficulty(self.difficulty)

    @property
    def num_cards(self) -> int:
        """Cards dealt in an episode."""
        return DECK * {"easy": 1, "medium": 8, "hard": 16}[self.difficulty]

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.num_cards - 1

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered="the first card's suit, to say it at every step",
            memory_window=self.num_cards - 2,
        )


class RepeatFirst(CardTask):
    """Say at every step which suit the first card had.

    The observation is the suit of the card just dealt; the action is a suit. The episode ends when
    the last card is dealt.
    """

    def __init__(
        self, config: RepeatFirstConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Discrete(NUM_SUITS),
            num_actions=NUM_SUITS,
            num_kinds=NUM_SUITS,
            num_questions=config.num_cards - 1,
        )

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        return self._answers.outcome(
            self.num_right,
            is_right=actions == self.deck[:, 0],
            is_asked=live,
            is_last=self.step_index == self.num_cards - 2,
        )


@dataclass(kw_only=True, slots=True)
class RepeatPreviousConfig:
    """What ``env=RepeatPrevious`` takes."""

    name: str = "RepeatPrevious"
    """The environment's name in the registry."""
    difficulty: str = "easy"
    """easy, medium or hard: 1, 2 or 3 decks and k = 4, 32 or 64."""

    def __post_init__(self) -> None:
        check_difficulty(self.difficulty)

    @property
    def num_cards(self) -> int:
        """Cards dealt in an episode."""
        return DECK * {"easy": 1, "medium": 2, "hard": 3}[self.difficulty]

    @property
    def k(self) -> int:
        """Which card is asked: 1 is the one just dealt."""
        return {"easy": 4, "medium": 32, "hard": 64}[self.difficulty]

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.num_cards - 1

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"the suits of the last {self.k} cards in order",
            memory_window=self.k - 1,
        )


class RepeatPrevious(CardTask):
    """Say at every step which suit the card dealt k - 1 steps ago had.

    The observation is the suit of the card just dealt; the action is a suit, and counts from the
    moment when k cards have been dealt. The episode ends when the last card is dealt.
    """

    def __init__(
        self, config: RepeatPreviousConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.Discrete(NUM_SUITS),
            num_actions=NUM_SUITS,
            num_kinds=NUM_SUITS,
            num_questions=config.num_cards - config.k,
        )
        self.k = config.k

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        asked = self.step_index - (self.k - 1)
        return self._answers.outcome(
            self.num_right,
            is_right=actions == self.deck[self.all_rows, np.maximum(asked, 0)],
            is_asked=live & (asked >= 0),
            is_last=self.step_index == self.num_cards - 2,
        )


@dataclass(kw_only=True, slots=True)
class AutoencodeConfig:
    """What ``env=Autoencode`` takes."""

    name: str = "Autoencode"
    """The environment's name in the registry."""
    difficulty: str = "easy"
    """easy, medium or hard: 1, 2 or 3 decks."""

    def __post_init__(self) -> None:
        check_difficulty(self.difficulty)

    @property
    def num_cards(self) -> int:
        """Cards shown and then asked."""
        return DECK * {"easy": 1, "medium": 2, "hard": 3}[self.difficulty]

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return 2 * self.num_cards - 1

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"the suits of {self.num_cards} cards in order",
            memory_window=2 * self.num_cards - 2,
        )


class Autoencode(CardTask):
    """Watch a deck card by card, then say the suits backwards, the last card first.

    The observation is [1 until the last card is shown, 0 from there on; the card's suit, 0 after
    the last one]. Actions are suits, and count while the first entry is 0.
    """

    def __init__(
        self, config: AutoencodeConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.MultiDiscrete([2, NUM_SUITS]),
            num_actions=NUM_SUITS,
            num_kinds=NUM_SUITS,
            num_questions=config.num_cards,
        )

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        # The last card shown is asked at step num_cards - 1, the first at 2 * num_cards - 2.
        asked = np.clip(2 * self.num_cards - 2 - self.step_index, 0, self.num_cards - 1)
        return self._answers.outcome(
            self.num_right,
            is_right=actions == self.deck[self.all_rows, asked],
            is_asked=live & (self.step_index >= self.num_cards - 1),
            is_last=self.step_index == 2 * self.num_cards - 2,
        )

    def _observe(self) -> NDArray[np.int64]:
        last = self.num_cards - 1
        suit = self.deck[self.all_rows, np.minimum(self.step_index, last)]
        shown = np.where(self.step_index <= last, suit, 0)
        return np.stack([(self.step_index < last).astype(np.int64), shown], axis=1)


@dataclass(kw_only=True, slots=True)
class CountRecallConfig:
    """What ``env=CountRecall`` takes."""

    name: str = "CountRecall"
    """The environment's name in the registry."""
    difficulty: str = "easy"
    """easy, medium or hard: colours of 1 deck, suits of 2 or ranks of 4."""

    def __post_init__(self) -> None:
        check_difficulty(self.difficulty)

    @property
    def num_cards(self) -> int:
        """Cards dealt in an episode."""
        return DECK * {"easy": 1, "medium": 2, "hard": 4}[self.difficulty]

    @property
    def num_kinds(self) -> int:
        """Kinds of cards: colours, suits or ranks."""
        return {"easy": 2, "medium": 4, "hard": 13}[self.difficulty]

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode."""
        return self.num_cards - 1

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=self.steps_per_episode,
            reward_range=(-1.0, 1.0),
            remembered=f"how often each of {self.num_kinds} kinds of cards came",
            memory_window=self.num_cards - 2,
        )


class CountRecall(CardTask):
    """Say at every step how often cards of the kind asked about have been dealt so far.

    Two decks are shuffled: one is dealt, the other asks. The observation is [kind of the card just
    dealt, kind asked about]; the action is the number of cards of that kind dealt until now, this
    one included. The episode ends when the last card is dealt.
    """

    state_names = ("deck", "queries", "counts", "num_right")

    def __init__(
        self, config: CountRecallConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.MultiDiscrete([config.num_kinds] * 2),
            num_actions=config.num_cards // config.num_kinds + 1,
            num_kinds=config.num_kinds,
            num_questions=config.num_cards - 1,
        )
        self.queries = np.zeros((num_envs, self.num_cards), dtype=np.int64)
        self.counts = np.zeros((num_envs, self.num_kinds), dtype=np.int64)
        """Cards of each kind dealt before the one just dealt."""

    def _start(self, rows: Rows) -> None:
        super()._start(rows)
        self.queries[rows] = self.streams.permutations(rows, self.num_cards) % self.num_kinds
        self.counts[rows] = 0

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:
        self.counts[self.all_rows, self.deck[self.all_rows, self.step_index]] += live
        asked = self.queries[self.all_rows, self.step_index]
        return self._answers.outcome(
            self.num_right,
            is_right=actions == self.counts[self.all_rows, asked],
            is_asked=live,
            is_last=self.step_index == self.num_cards - 2,
        )

    def _observe(self) -> NDArray[np.int64]:
        rows, step = self.all_rows, self.step_index
        return np.stack([self.deck[rows, step], self.queries[rows, step]], axis=1)
