"""The text of a character model: facts and questions, and its rows."""

import re

import torch

from mtxl_rl.language_model.text import is_answer, recall_text, rows_of
from mtxl_rl.language_model.train_config import TrainLMConfig


def test_every_question_is_answered_by_its_fact_and_only_by_it() -> None:
    text = recall_text(5000, gap=30, seed=1).decode()
    parts = re.findall(r"((?:[a-z]\d;){4})(\.+)((?:\?[a-z]\d;){4})", text)
    assert len(parts) > 80
    for facts, gap, questions in parts:
        stated, queried = (re.findall(r"([a-z])(\d);", part) for part in (facts, questions))
        assert sorted(stated) == sorted(queried)
        assert len(dict(stated)) == 4
        assert len(gap) == 30
    assert any(facts != questions.replace("?", "") for facts, _, questions in parts)
    assert recall_text(5000, gap=30, seed=1).decode() == text
    assert recall_text(5000, gap=30, seed=2).decode() != text


def test_rows_are_the_text_in_order_and_the_last_tenth_is_held_out() -> None:
    text = bytes(range(256)) * 10
    train, held_out = rows_of(text, TrainLMConfig(batch_size=2, segments=1, seq_len=8, mem_len=8))
    joined = train.flatten().tolist() + held_out.flatten().tolist()
    assert bytes(joined) == text
    assert len(held_out.flatten()) == 256


def test_answers_are_two_characters_after_a_question_mark() -> None:
    tokens = torch.tensor([list(b"?a1;?b2")])
    assert is_answer(tokens).nonzero()[:, 1].tolist() == [2, 6]
