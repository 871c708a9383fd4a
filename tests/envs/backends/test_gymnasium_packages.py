"""Tasks of other packages through `env=Gymnasium`; what is not installed is skipped."""

import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtxl_rl.envs.backends.covered_spaces import MAX_WORDS, CoveredObservation, cover, word_numbers
from mtxl_rl.envs.backends.gymnasium_env import PACKAGES, GymnasiumConfig
from mtxl_rl.envs.registry import make_vector_env

# Words of all missions of MiniGrid 3 and BabyAI.
WORDS = (  # noqa: SIM905
    "a after and at avoid ball behind blue box door end fetch find from front get go goal green "
    "grey hallway in key lava left matching must near next object of on open opening pick purple "
    "put reach red right room rooms square the then to traverse unlock up use yellow you your"
).split()
IDS: list[tuple[str, dict[str, Any]]] = [
    ("MiniGrid-MemoryS7-v0", {}),
    ("BabyAI-GoToLocal-v0", {}),
    ("MiniWorld-TMaze-v0", {}),
    ("VizdoomBasic-v1", {}),
    ("ALE/Pong-v5", {}),
    ("bsuite/memory_len-v0", {"memory_length": 5}),
    ("bsuite/memory_size-v0", {"num_bits": 3}),
    ("dm_control/cartpole-balance-v0", {}),
]
POPGYM = [
    "Autoencode",
    "Battleship",
    "Concentration",
    "CountRecall",
    "HigherLower",
    "LabyrinthEscape",
    "LabyrinthExplore",
    "MineSweeper",
    "MultiarmedBandit",
    "NoisyPositionOnlyCartPole",
    "NoisyPositionOnlyPendulum",
    "PositionOnlyCartPole",
    "PositionOnlyPendulum",
    "RepeatFirst",
    "RepeatPrevious",
    "VelocityOnlyCartpole",
]
IDS += [(f"popgym-{name}{level}-v0", {}) for name in POPGYM for level in ("Easy", "Medium", "Hard")]


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(("env_id", "kwargs"), IDS)
def test_an_environment_of_a_package_runs_by_its_id_alone(
    env_id: str, kwargs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # ViZDoom writes its settings where it runs
    package = next(entry for entry in PACKAGES if env_id.startswith(entry.prefix))
    needed = [package.module.split(".")[0], *{"bsuite", "dm_control"} & {env_id.split("/")[0]}]
    if not all(map(importlib.util.find_spec, needed)):
        pytest.skip(f"{needed} are not installed")
    env = make_vector_env(GymnasiumConfig(id=env_id, kwargs=kwargs), num_envs=2, seed=0)
    observations, _ = env.reset()
    for _ in range(5):
        assert env.observation_space.contains(observations)
        observations = env.step(env.action_space.sample())[0]
    env.close()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named_with_its_pip_line(
    package: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package.module, None)
    for env_id in [name for name in gymnasium.registry if name.startswith(package.prefix)]:
        monkeypatch.delitem(gymnasium.registry, env_id)
    config = GymnasiumConfig(id=f"{package.prefix}Some-v0")
    with pytest.raises(ImportError) as caught:
        make_vector_env(config, num_envs=1, seed=0)
    assert f"pip install 'mtxl_rl[{package.extra}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_package_has_its_extra() -> None:
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    assert {package.extra for package in PACKAGES} <= set(extras)


def test_missions_words_get_numbers_of_their_own_in_order() -> None:
    numbers = [int(word_numbers(word)[0]) for word in WORDS]
    assert len(set(numbers)) == len(WORDS)
    assert min(numbers) > 0
    sentence = word_numbers("Go to the Red ball, then go.")
    by_word = dict(zip(WORDS, numbers, strict=True))
    expected = [by_word[word] for word in ["go", "to", "the", "red", "ball", "then", "go"]]
    assert sentence.tolist() == expected + [0] * (MAX_WORDS - 7)
    assert word_numbers("go " * 99).shape == (MAX_WORDS,)


class Odd(gymnasium.Env[Any, Any]):
    """An observation of a tuple, a text and a plain box."""

    observation_space = spaces.Dict({
        "pair": spaces.Tuple((spaces.Discrete(3), spaces.Text(9))),
        "plain": spaces.Box(0, 1, (2,), np.float32),
    })  # fmt: skip
    action_space = spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        """Always the same."""
        return {"pair": (2, "go"), "plain": np.zeros(2, np.float32)}, {}


def test_tuples_become_dicts_and_texts_become_words() -> None:
    env = cover(Odd())
    observation, _ = env.reset()
    assert isinstance(env, CoveredObservation)
    assert env.observation_space.contains(observation)
    assert observation["pair"]["0"] == 2
    assert observation["pair"]["1"].tolist() == word_numbers("go").tolist()
    assert observation["plain"].tolist() == [0, 0]


def test_what_is_covered_already_is_left_alone() -> None:
    env = gymnasium.make("CartPole-v1")
    assert cover(env) is env
