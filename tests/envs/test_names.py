"""The names most similar to a mistyped one."""

import pytest

from mtxl_rl.envs.names import check_choice, nearest_names


def test_the_most_similar_name_comes_first_whatever_its_case() -> None:
    known = ["Pendulum-v1", "CartPole-v1"]
    assert nearest_names("cartpole", known) == ["CartPole-v1", "Pendulum-v1"]
    assert nearest_names("CartPol-v1", known, count=1) == ["CartPole-v1"]


def test_the_error_about_a_choice_ranks_the_legal_values_and_ends_with_the_hint() -> None:
    check_choice("torso", "gru", ["gru", "mtxl"])
    with pytest.raises(ValueError, match=r"^torso=mtx is unknown; choose one of mtxl, gru, or b$"):
        check_choice("torso", "mtx", ["gru", "mtxl"], hint=", or b")
