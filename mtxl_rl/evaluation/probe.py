"""Measures what an agent's memory holds of things that it no longer sees.

The predictions of `auxiliary.predict` are compared with the truth, by the steps since each target
was last in view: R^2, the explained share of the variance.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.episodes import ablate_memory
from mtxl_rl.agents.policy import Policy
from mtxl_rl.torso import Cache
from mtxl_rl.tracking.files import atomic_write

# B environments, n targets.

_ENDS = (0, 8, 16, 32, 64, 128, 256)
AGES = ("in view", *(f"{low + 1}-{high}" for low, high in pairwise(_ENDS)), "257-", "never seen")
"""Ranges of steps since a target was last in view."""
_LOWEST = -1.0  # Lower R^2 is cut off in the plot.


class Explained(NamedTuple):
    """Share of a leaf's variance that its prediction explains, of targets of one age."""

    leaf: str
    memory: str
    age: str
    num_compared: int
    """Numbers that were compared."""
    r2: float
    """NaN without variance, as without any step."""


@runtime_checkable
class HasTargets(Protocol):
    """An environment that knows when each target was last in view."""

    def target_ages(self) -> Int64[np.ndarray, "B n"]:
        """Steps since then, 0 while it is in view; -1: never in this episode."""
        ...


class Probe:
    """Compares predictions with the truth at every step of an evaluation.

    It reads the policy's inputs with a memory of its own, so that the evaluation is as without it.
    Leaves are compared that have a row for each target, such as ``targets_vec``.

    Args:
        policy: Trained with `auxiliary.predict`.
        memory: Setting of the long-term memory, see `ablate_memory`.

    Raises:
        ValueError: the policy predicts no numbers.
    """

    def __init__(self, policy: Policy, *, memory: str) -> None:
        if policy.decoder is None or not policy.decoder.vectors:
            raise ValueError(
                "probe= needs an agent that was trained to predict numbers of targets, as with "
                "auxiliary.predict=[targets_vec]"
            )
        self.policy, self.memory = policy, memory
        self.cache: Cache | None = None
        self._sums: dict[str, Float64[np.ndarray, "numbers ages 4"]] = {}

    def observe(self, actor: Actor) -> None:
        """Compare at the actor's current step."""
        env: Any = actor.env
        env = env.unwrapped
        if not isinstance(env, HasTargets):
            raise ValueError(
                f"probe= needs an environment with target_ages(), as Memory Maze and "
                f"GridMemoryMaze have; {type(env).__name__} has none"
            )
        if self.cache is None:
            state = self.policy.torso.initial_state(actor.env.num_envs)
            self.cache = self.policy.prefill(state)
        ablate_memory(self.cache, self.memory)
        inputs = actor.inputs()
        predictions = self.policy.predict(inputs, self.cache)
        ages = np.asarray(env.target_ages())
        for leaf, prediction in predictions.items():
            truth = inputs.observation[leaf]
            if truth.ndim > 1 and truth.shape[1] == ages.shape[1]:
                numbers = truth.flatten(1).double().cpu().numpy()
                self._add(leaf, numbers, prediction.double().cpu().numpy(), ages)
        if not self._sums:
            raise ValueError(
                f"probe= needs a predicted leaf with a row for each of {ages.shape[1]} targets; "
                f"this agent predicts {', '.join(predictions)}: train with "
                "auxiliary.predict=[targets_vec]"
            )

    def _add(
        self, leaf: str, truth: NDArray[Any], prediction: NDArray[Any], ages: NDArray[np.int64]
    ) -> None:
        """Add counts, sums, sums of squares, and squared errors to those of the ages."""
        age = np.where(ages < 0, len(AGES) - 1, np.searchsorted(_ENDS, ages))
        numbers = truth.shape[1] // ages.shape[1]
        age = age.repeat(numbers, axis=1)
        sums = self._sums.setdefault(leaf, np.zeros((truth.shape[1], len(AGES), 4)))
        columns = np.broadcast_to(np.arange(truth.shape[1]), age.shape)
        error = (truth - prediction) ** 2
        terms = np.stack([np.ones_like(truth), truth, truth**2, error], axis=-1)
        np.add.at(sums, (columns, age), terms)

    def results(self) -> list[Explained]:
        """One for each leaf and age, in the order of `AGES`."""
        results = []
        for leaf, sums in self._sums.items():
            count, total, squares, errors = np.moveaxis(sums, -1, 0)
            variation = (squares - total**2 / np.maximum(count, 1)).sum(0)
            is_constant = variation <= 1e-9 * squares.sum(0)
            r2 = 1 - errors.sum(0) / np.where(is_constant, np.nan, variation)
            for age, label in enumerate(AGES):
                compared = int(count[:, age].sum())
                results.append(Explained(leaf, self.memory, label, compared, float(r2[age])))
        return results


def draw_probe(results: Sequence[Explained], path: Path, *, title: str, reach: int) -> None:
    """Plot R^2 by age, a panel for each leaf and a line for each setting of the memory.

    Args:
        results: Of all settings.
        path: File, .png or .svg.
        title: Task and agent.
        reach: Steps that the windows reach back.
    """
    from matplotlib.figure import Figure

    leaves = list(dict.fromkeys(result.leaf for result in results))
    figure = Figure(figsize=(9.0, 3.4 * len(leaves)), layout="constrained")
    figure.suptitle(title)
    for axis, leaf in zip(figure.subplots(len(leaves), squeeze=False)[:, 0], leaves, strict=True):
        for memory in dict.fromkeys(result.memory for result in results):
            line = {r.age: r.r2 for r in results if (r.leaf, r.memory) == (leaf, memory)}
            axis.plot(range(len(AGES)), [line[age] for age in AGES], marker="o", label=memory)
        axis.set_xticks(range(len(AGES)), AGES, rotation=20, ha="right")
        within = sum(end <= reach for end in _ENDS) - 0.5
        axis.axvspan(-0.5, within, color="0.92", label=f"windows reach {reach} back")
        axis.set(xlabel="steps since the target was last in view", xlim=(-0.5, len(AGES) - 0.5))
        lowest = min(-0.1, max(_LOWEST, axis.get_ylim()[0]))
        axis.set(ylabel=f"R² of {leaf}", ylim=(lowest, 1.02))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.grid(alpha=0.3)
        axis.legend(title="long-term memory", loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
