"""Smaller mazes and shorter episodes for training: which size and length the next episode has.

A small maze has frequent rewards, so an agent learns early to remember where the targets are. It
lies in the middle of the full size's grid with walls around it, and has as many targets as the full
size. Short episodes show an agent many mazes, so it learns to remember a maze instead of learning
it by heart.
"""

import math
from typing import Any, Protocol, runtime_checkable

from mtxl_rl.envs.memory_maze.maze_sizes import SIZES, MazeSize

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@runtime_checkable
class HasCurriculum(Protocol):
    """The options of a task with a curriculum."""

    size: str
    """The full size."""
    curriculum: dict[str, float]
    """Shares of smaller sizes."""
    curriculum_steps: int
    """Steps of each environment over which the shares fall to 0 and episodes grow; 0: they stay."""
    curriculum_episode_length: int
    """Steps of the first episodes; 0: as many as later."""

    @property
    def steps_per_episode(self) -> int:
        """Steps of every episode after the curriculum."""


def no_curriculum() -> dict[str, Any]:
    """The options of a task without a curriculum, as in evaluations."""
    return {"curriculum": {}, "curriculum_steps": 0, "curriculum_episode_length": 0}


def check_curriculum(config: HasCurriculum) -> None:
    """Raise ValueError unless the shares and steps of a curriculum are legal."""
    smaller = list(SIZES)[: list(SIZES).index(config.size)]
    shares = list(config.curriculum.values())
    if set(config.curriculum) - set(smaller) or min(shares, default=0) < 0 or sum(shares) > 1:
        known = ", ".join(smaller) or "no size"
        raise ValueError(
            f"env.curriculum={config.curriculum} must give shares from 0 to 1, at most 1 in "
            f"total, of sizes below env.size={config.size} ({known}), e.g. "
            "'env.curriculum={5x5: 0.3}' with env.size=9x9."
        )
    if config.curriculum_steps < 0:
        raise ValueError(
            f"env.curriculum_steps={config.curriculum_steps} must be 0 (the shares stay) or a "
            "number of steps of each environment, e.g. env.curriculum_steps=100000."
        )
    first, last = config.curriculum_episode_length, config.steps_per_episode
    if not 0 <= first <= last:
        raise ValueError(
            f"env.curriculum_episode_length={first} must be from 1 to the {last} steps of an "
            "episode, or 0 (every episode has those), e.g. env.curriculum_episode_length=128."
        )
    if first and not config.curriculum_steps:
        raise ValueError(
            f"env.curriculum_episode_length={first} needs the steps over which episodes grow, e.g. "
            "env.curriculum_steps=40000."
        )


def has_curriculum(config: HasCurriculum) -> bool:
    """Return whether some episodes are easier than the task."""
    return bool(config.curriculum or config.curriculum_episode_length)


def size_to_play(config: HasCurriculum, *, point: float, num_steps: int) -> str:
    """Return the size of the next maze of an environment.

    Each size of the curriculum has an interval of [0, 1), smallest first. The intervals shrink to
    nothing over `config.curriculum_steps`.

    Args:
        config: The task.
        point: In [0, 1); the size is that of its interval.
        num_steps: Steps of this environment since it was seeded.
    """
    scale = 1.0
    if config.curriculum_steps:
        scale = max(0.0, 1.0 - num_steps / config.curriculum_steps)
    end = 0.0
    for size in sorted(config.curriculum, key=lambda size: SIZES[size].side):
        end += scale * config.curriculum[size]
        if point < end:
            return size
    return config.size


def steps_to_play(config: HasCurriculum, *, point: float, phase: float, num_steps: int) -> int:
    """Return the length of the next episode of an environment, in steps.

    It lies between `config.curriculum_episode_length` and a longest one, evenly by its logarithm.
    The longest one grows by equal factors to the task's over `config.curriculum_steps`. Within a
    task's episode after them, at its `phase`, the environment begins its first episode of the
    task's length, and all others have that length. So environments of evenly spread phases do not
    end their episodes together.

    Args:
        config: The task.
        point: In [0, 1); where the length lies between the two.
        phase: In [0, 1), the same for all episodes of an environment.
        num_steps: Steps of this environment since it was seeded.
    """
    first, last = config.curriculum_episode_length, config.steps_per_episode
    remaining = config.curriculum_steps + round(phase * last) - num_steps
    if not first or remaining <= 0:
        return last
    progress = min(1.0, num_steps / config.curriculum_steps)
    return min(remaining, round(first * (last / first) ** (point * progress)))


def point_of_seed(seed: int) -> float:
    """Return a point in [0, 1) for an environment.

    Points of consecutive seeds are spread evenly, so sizes have their shares in any slice of the
    environments.
    """
    return seed * _GOLDEN_RATIO % 1.0


def with_targets(size: MazeSize, *, num_targets: int) -> MazeSize:
    """Return the size with another number of targets, and rooms with space for them."""
    factor = math.ceil(num_targets / size.num_targets)
    return size._replace(num_targets=num_targets, objects_per_room=factor * size.objects_per_room)
