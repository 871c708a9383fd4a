"""Convert observations that no encoder supports into observations that are supported.

Tuples become Dicts with the keys "0", "1", ...; texts become word numbers; MiniGrid's "images",
which hold kinds, colours and states of cells, become MultiDiscrete.
"""

import re
import zlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

MAX_WORDS = 40
"""Words of a text that are kept; the longest mission of BabyAI has 37."""
NUM_WORDS = 255
"""Words are numbered 1 .. NUM_WORDS; 0 stands for no word."""
CELL_CHOICES = (11, 6, 3)
"""Numbers of kinds, colours and states of a cell in MiniGrid's view."""
MISSION_SPACE = spaces.MultiDiscrete([NUM_WORDS + 1] * MAX_WORDS)
"""The space of texts such as MiniGrid's missions."""
# With this salt the 53 words of MiniGrid's and BabyAI's missions get 53 different numbers.
_SALT = 296


class CoveredObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Wrapper that converts observations into supported ones."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.cells = _cells_shape(env)
        self.observation_space = covered_space(env.observation_space, cells=self.cells)

    def observation(self, observation: Any) -> Any:  # noqa: ANN401
        """Return the observation in the new space."""
        return _convert(observation, self.env.observation_space, cells=self.cells)


def cover(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return the environment, wrapped in `CoveredObservation` where that changes its space."""
    space = env.observation_space
    return (
        env if covered_space(space, cells=_cells_shape(env)) is space else CoveredObservation(env)
    )


def covered_space(space: Space[Any], *, cells: tuple[int, ...] | None = None) -> Space[Any]:
    """Return the supported space for a space; the same object if it needs no change.

    `cells` is the shape of boxes that hold MiniGrid's cells, or None.
    """
    if _is_text(space):
        return MISSION_SPACE
    if cells is not None and space.shape == cells:
        return cells_space(cells)
    if isinstance(space, spaces.Tuple):
        leaves = {str(i): leaf for i, leaf in enumerate(space.spaces)}
        return spaces.Dict({key: covered_space(leaf, cells=cells) for key, leaf in leaves.items()})
    if isinstance(space, spaces.Dict):
        leaves = {key: covered_space(leaf, cells=cells) for key, leaf in space.spaces.items()}
        changed = any(leaves[key] is not leaf for key, leaf in space.spaces.items())
        return spaces.Dict(leaves) if changed else space
    return space


def word_numbers(text: str) -> NDArray[np.int64]:
    """Return a number in 1 .. NUM_WORDS for each of the first `MAX_WORDS` words, then zeros.

    A word's number is a hash of it; two words share one with a probability of 1 in 255.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())[:MAX_WORDS]
    numbers = np.zeros(MAX_WORDS, dtype=np.int64)
    for index, word in enumerate(words):
        numbers[index] = 1 + zlib.crc32(f"{_SALT} {word}".encode()) % NUM_WORDS
    return numbers


def cells_space(shape: tuple[int, ...]) -> spaces.MultiDiscrete:
    """Return the space of a flattened MiniGrid view [V, V, 3]: `CELL_CHOICES` for each cell."""
    choices = list(CELL_CHOICES) * (shape[0] * shape[1])
    return spaces.MultiDiscrete(choices, dtype=np.uint8)  # type: ignore[arg-type]


def _cells_shape(env: gymnasium.Env[Any, Any]) -> tuple[int, ...] | None:
    """Return the shape of a MiniGrid environment's cells; None for other environments."""
    base = env.unwrapped
    if not type(base).__module__.startswith("minigrid."):
        return None
    side: int = base.agent_view_size  # type: ignore[attr-defined]
    return (side, side, 3)


def _convert(observation: Any, space: Space[Any], *, cells: tuple[int, ...] | None) -> Any:  # noqa: ANN401
    if _is_text(space):
        return word_numbers(observation)
    if cells is not None and space.shape == cells:
        return observation.reshape(-1)
    if isinstance(space, spaces.Tuple):
        leaves = zip(observation, space.spaces, strict=True)
        return {str(index): _convert(*leaf, cells=cells) for index, leaf in enumerate(leaves)}
    if isinstance(space, spaces.Dict):
        return {
            key: _convert(observation[key], leaf, cells=cells) for key, leaf in space.spaces.items()
        }
    return observation


def _is_text(space: Space[Any]) -> bool:
    """Whether observations are strings; MiniGrid's missions have a space class of their own."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"
