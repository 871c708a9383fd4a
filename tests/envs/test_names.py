"""The names most similar to a mistyped one."""

from mtxl_rl.envs.names import nearest_names


def test_the_most_similar_name_comes_first_whatever_its_case() -> None:
    known = ["Pendulum-v1", "CartPole-v1"]
    assert nearest_names("cartpole", known) == ["CartPole-v1", "Pendulum-v1"]
    assert nearest_names("CartPol-v1", known, count=1) == ["CartPole-v1"]
