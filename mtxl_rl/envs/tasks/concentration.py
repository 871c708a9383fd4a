"""POPGym's Concentration: turn over pairs of cards and remember where each one lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.cards import DECK, check_difficulty
from mtxl_rl.envs.tasks.vector_task import Flags, Outcome, TaskDescription, VectorTask

_NO_CARD = -1


@dataclass(kw_only=True, slots=True)
class ConcentrationConfig:
    """What ``env=Concentration`` takes."""

    name: str = "Concentration"
    """The environment's name in the registry."""
    difficulty: str = "easy"
    """easy, medium or hard: colours of 1 deck, colours of 2 or ranks of 1."""

    def __post_init__(self) -> None:
        check_difficulty(self.difficulty)

    @property
    def num_cards(self) -> int:
        """Cards on the table."""
        return DECK * (2 if self.difficulty == "medium" else 1)

    @property
    def num_kinds(self) -> int:
        """Kinds of cards: colours or ranks."""
        return 13 if self.difficulty == "hard" else 2

    @property
    def max_steps(self) -> int:
        """POPGym's limit, from the turns that a perfect player needs on average."""
        return math.ceil(2 * self.num_cards - self.num_cards / (2 * self.num_cards - 1))

    def describe(self) -> TaskDescription:
        """What the task asks of an agent."""
        return TaskDescription(
            horizon=self.max_steps,
            reward_range=(-1.0, 1.0),
            remembered=f"which of {self.num_kinds} kinds lies where among {self.num_cards} cards",
            memory_window=self.max_steps - 1,
        )


class Concentration(VectorTask):
    """Turn over two cards, one a step; if they match they stay open, else both turn back.

    The observation has an entry for each card: its kind where it lies open, else `num_kinds`. The
    two cards just turned over are shown once, matching or not. The action is the card to turn over.
    A pair gives 1 / number of pairs; a pair that does not match, or one card twice, costs two times
    1 / `max_steps`. Turning over a card that already lies open costs 1 / `max_steps` for each card
    of the turn and ends the turn. The episode terminates when all lie open, and is truncated after
    `max_steps`. `success` is the share of pairs found.

    Rules, rewards and lengths of popgym 1.0.7 (see `mtxl_rl.envs.tasks.cards`).
    """

    state_names = ("deck", "faces", "num_open", "first", "shown")

    def __init__(
        self, config: ConcentrationConfig, *, num_envs: int, seed: int | Sequence[int] = 0
    ) -> None:
        self.num_cards, self.num_kinds = config.num_cards, config.num_kinds
        super().__init__(
            config,
            num_envs=num_envs,
            seed=seed,
            observation_space=spaces.MultiDiscrete(
                [self.num_kinds + 1] * self.num_cards, dtype=np.int8
            ),
            num_actions=self.num_cards,
        )
        self.max_steps = config.max_steps
        self.deck = np.zeros((num_envs, self.num_cards), dtype=np.int8)
        """Kinds by place on the table."""
        self.faces = np.full_like(self.deck, self.num_kinds)
        """What lies open for good: kinds of the pairs found, `num_kinds` elsewhere."""
        self.num_open = np.zeros(num_envs, dtype=np.int64)
        self.first = np.full(num_envs, _NO_CARD)
        """The first card of the turn, or -1."""
        self.shown = np.full((num_envs, 2), _NO_CARD)
        """The cards that the last observation shows beside the open ones, or -1."""

    def _start(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % self.num_kinds
        self.faces[rows] = self.num_kinds
        self.num_open[rows] = 0
        self.first[rows] = _NO_CARD
        self.shown[rows] = _NO_CARD

    def _advance(self, actions: NDArray[Any], live: Flags) -> Outcome:  # noqa: ARG002
        rows, first = self.all_rows, self.first
        is_second = first != _NO_CARD
        other = np.where(is_second, first, actions)
        self.shown[:, 0], self.shown[:, 1] = other, actions
        was_open = self.faces[rows, actions] != self.num_kinds
        kind = self.deck[rows, actions]
        is_pair = is_second & ~was_open & (kind == self.deck[rows, other]) & (other != actions)
        found = np.flatnonzero(is_pair)
        for card in (actions[found], other[found]):
            self.faces[found, card] = kind[found]
        self.num_open += 2 * is_pair
        self.first = np.where(is_second | was_open, _NO_CARD, actions)
        num_wrong = np.where(was_open, 1 + is_second, 2 * (is_second & ~is_pair))
        rewards = is_pair / (self.num_cards // 2) - num_wrong / self.max_steps
        is_done = is_pair & (self.num_open == self.num_cards)
        out_of_time = self.step_index == self.max_steps - 1
        return Outcome(rewards, is_done, out_of_time, self.num_open / self.num_cards)

    def _observe(self) -> NDArray[np.int8]:
        faces = self.faces.copy()
        rows = np.flatnonzero(self.shown[:, 0] != _NO_CARD)
        for card in self.shown[rows].T:
            faces[rows, card] = self.deck[rows, card]
        return faces
