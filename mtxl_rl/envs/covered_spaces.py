"""Observations that packages give and no encoder reads, turned into ones that are covered.

Tuples become Dicts with the keys "0", "1", ...; texts become numbers of words.
"""

import re
import zlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

MAX_WORDS = 40
"""Words of a text that are kept; BabyAI's longest mission has 37."""
NUM_WORDS = 255
"""Numbers that words may get, from 1; 0 stands where there is no word."""
# With this salt the 53 words of MiniGrid's and BabyAI's missions get 53 different numbers.
_SALT = 296


class CoveredObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """An environment whose observation is turned into a covered one, one level deep."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = covered_space(env.observation_space)

    def observation(self, observation: Any) -> Any:  # noqa: ANN401
        """The observation in the new space."""
        return _convert(observation, self.env.observation_space)


def cover(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment itself, or in a `CoveredObservation` where that changes its space."""
    space = env.observation_space
    return env if covered_space(space) is space else CoveredObservation(env)


def covered_space(space: Space[Any]) -> Space[Any]:
    """The space that takes another's place; the same object if nothing has to change."""
    if _is_text(space):
        return spaces.MultiDiscrete([NUM_WORDS + 1] * MAX_WORDS)
    if isinstance(space, spaces.Tuple):
        return spaces.Dict({str(i): covered_space(leaf) for i, leaf in enumerate(space.spaces)})
    if isinstance(space, spaces.Dict):
        leaves = {key: covered_space(leaf) for key, leaf in space.spaces.items()}
        changed = any(leaves[key] is not leaf for key, leaf in space.spaces.items())
        return spaces.Dict(leaves) if changed else space
    return space


def word_numbers(text: str) -> NDArray[np.int64]:
    """A number from 1 to `NUM_WORDS` for each of the first `MAX_WORDS` words, then zeros.

    The number depends on the word alone; two words share one with a probability of 1 in 255.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())[:MAX_WORDS]
    numbers = np.zeros(MAX_WORDS, dtype=np.int64)
    for index, word in enumerate(words):
        numbers[index] = 1 + zlib.crc32(f"{_SALT} {word}".encode()) % NUM_WORDS
    return numbers


def _convert(observation: Any, space: Space[Any]) -> Any:  # noqa: ANN401
    if _is_text(space):
        return word_numbers(observation)
    if isinstance(space, spaces.Tuple):
        leaves = zip(observation, space.spaces, strict=True)
        return {str(index): _convert(*leaf) for index, leaf in enumerate(leaves)}
    if isinstance(space, spaces.Dict):
        return {key: _convert(observation[key], leaf) for key, leaf in space.spaces.items()}
    return observation


def _is_text(space: Space[Any]) -> bool:
    """Whether observations are strings; MiniGrid's missions have a space class of their own."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"
