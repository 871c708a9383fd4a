"""POPGym's Concentration: turn over pairs of cards and remember where each card lies.

Source: Morad et al. (2023), "POPGym", https://openreview.net/forum?id=chDrutUTs0K. Rules, rewards
and episode lengths equal popgym 1.0.7. `cards.CardConfig` lists decks and kinds by difficulty.

Rules: cards lie face down. The agent turns over one card in a step. If the two cards of a turn
match, they stay face up; else both turn back. Turning over a face-up card ends the turn.
Observation: each card's kind if it is face up, else `num_kinds`. The two cards just turned over are
shown once, matching or not.
Action: the card to turn over, 0 .. num_cards - 1.
Reward: 1 / number of pairs for a pair. -2 / `max_steps` for two cards that do not match, or one
card twice. -1 / `max_steps` for each card of a turn that a face-up card ends.
Episode length: until all cards are face up (terminated), at most `max_steps` (truncated).
`success` is the share of pairs found.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.envs.streams import Rows
from mtxl_rl.envs.tasks.canvas import BLUE, GREEN, YELLOW, Card, Image, draw_cards
from mtxl_rl.envs.tasks.cards import CardConfig
from mtxl_rl.envs.tasks.vector_task import Flags, Outcome, VectorTask

_NO_CARD = -1


class Concentration(VectorTask):
    """Turn over pairs of matching cards; see the module's docstring."""

    state_names = ("deck", "faces", "num_open", "first", "shown")

    def __init__(self, config: CardConfig, *, num_envs: int, seed: int | Sequence[int] = 0) -> None:
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
        """The kind of each card on the table."""
        self.faces = np.full_like(self.deck, self.num_kinds)
        """Kinds of the cards of pairs found, `num_kinds` elsewhere."""
        self.num_open = np.zeros(num_envs, dtype=np.int64)
        self.first = np.full(num_envs, _NO_CARD)
        """The first card of the turn, or -1."""
        self.shown = np.full((num_envs, 2), _NO_CARD)
        """The cards just turned over, shown in addition to the pairs found, or -1."""

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
        pair_rows = np.flatnonzero(is_pair)
        for card in (actions[pair_rows], other[pair_rows]):
            self.faces[pair_rows, card] = kind[pair_rows]
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

    def _draw(self, row: int) -> Image:
        """The table: pairs found on green, the turn's cards on yellow, the rest on blue."""
        cards = [
            Card(int(kind), paper=GREEN if face != self.num_kinds else BLUE)
            for kind, face in zip(self.deck[row], self.faces[row], strict=True)
        ]
        for card in self.shown[row]:
            if card != _NO_CARD:
                cards[card] = Card(int(self.deck[row, card]), paper=YELLOW)
        return draw_cards(cards, num_kinds=self.num_kinds)
