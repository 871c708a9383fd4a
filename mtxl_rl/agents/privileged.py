"""Privileged observations: leaves that training receives, and acting does not need."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.agents.encoders import ObservationEncoder, init_weights, observation_leaves
from mtxl_rl.env_keys import ACTION_MASK_KEY
from mtxl_rl.torso.torso_config import check_at_least

# D width.


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """The inputs of the value estimate, in addition to the torso's output."""

    observations: list[str] = field(default_factory=list)
    """Leaves of a Dict observation that only the value estimate receives, as in
    critic.observations=[targets_vec]; those of policy.observations= may be repeated. Acting does
    not need them (asymmetric critic)."""


@dataclass(kw_only=True, slots=True)
class AuxiliaryConfig:
    """A loss of predicting observations from the torso's output, which trains its memory."""

    predict: list[str] = field(default_factory=list)
    """Leaves of the observation to predict, whether the policy receives them or not; a space that
    is not a Dict has the one leaf obs."""
    movement: list[str] = field(default_factory=list)
    """The two leaves that train torso.odometry, as in [last_vec,last_dir]: the vector to the place
    of the step before, and the unit vector of the direction of then; both [right, ahead] in the
    agent's axes."""
    coef: float = 0.1
    """Weight of the loss, summed over the leaves. Numbers are predicted in units of their standard
    deviation."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_at_least(self, 0, "coef", prefix="auxiliary.")
        if self.movement and len(self.movement) != 2:
            raise ValueError(
                f"auxiliary.movement=[{','.join(self.movement)}] must name two leaves, a vector "
                "and a direction, as in auxiliary.movement=[last_vec,last_dir]"
            )
        twice = [name for name in self.movement if name in self.predict]
        if twice:
            raise ValueError(
                f"auxiliary.predict=[{','.join(self.predict)}] repeats {', '.join(twice)} of "
                "auxiliary.movement; leave them out of one of both"
            )


class ObservationGroups(NamedTuple):
    """The parts of an observation space, by what receives them."""

    policy: gymnasium.Space[Any]
    """The leaves that acting needs, the action mask included."""
    critic: spaces.Dict | None
    """The leaves that only the value estimate receives."""
    predicted: gymnasium.Space[Any] | None
    """The leaves that the auxiliary loss predicts."""
    training: gymnasium.Space[Any]
    """The leaves that training needs: all of the above."""


def observation_groups(
    space: gymnasium.Space[Any],
    *,
    policy: Sequence[str],
    critic: Sequence[str],
    predicted: Sequence[str],
    movement: Sequence[str] = (),
) -> ObservationGroups:
    """Divide an observation space; an empty `policy` is all of it.

    Raises:
        ValueError: a name is not that of a leaf, or the critic has no leaf of its own.
    """
    leaves = observation_leaves(space)
    names = {
        "policy.observations": policy,
        "critic.observations": critic,
        "auxiliary.predict": predicted,
        "auxiliary.movement": movement,
    }
    for option, chosen in names.items():
        unknown = [name for name in chosen if name not in leaves]
        if unknown:
            raise ValueError(
                f"{option}=[{','.join(chosen)}]: the observation has no {', '.join(unknown)}; it "
                f"has {', '.join(leaves)}"
            )
    for name in movement:
        if leaves[name].shape != (2,):
            raise ValueError(
                f"auxiliary.movement=[{','.join(movement)}]: {name} is {leaves[name]}, but must "
                "have two numbers, [right, ahead]"
            )
    acting = list(policy) or list(leaves)
    privileged = [name for name in critic if name not in acting]
    if critic and not privileged:
        raise ValueError(
            f"critic.observations=[{','.join(critic)}] has no effect, because the policy receives "
            "all of them; name the policy's own with policy.observations=[...]"
        )
    if not isinstance(space, spaces.Dict):
        return ObservationGroups(space, None, space if predicted else None, space)
    mask = [ACTION_MASK_KEY] if ACTION_MASK_KEY in space.spaces else []
    return ObservationGroups(
        policy=_select(space, acting + mask),
        critic=_select(space, privileged) if privileged else None,
        predicted=_select(space, predicted) if predicted else None,
        training=_select(space, [*acting, *mask, *privileged, *predicted, *movement]),
    )


def _select(space: spaces.Dict, names: Sequence[str]) -> spaces.Dict:
    """The leaves of those names, in the space's order."""
    return spaces.Dict({name: leaf for name, leaf in space.spaces.items() if name in names})


class PrivilegedCritic(nn.Module):
    """Adds privileged observations to the features of which the value is estimated.

    features + W2 relu(W1 [features; encoding of the observations])
    """

    def __init__(self, space: spaces.Dict, width: int, *, image: str) -> None:
        super().__init__()
        self.names = list(space.spaces)
        self.encoder = ObservationEncoder(space, width, image=image)
        self.first = nn.Linear(2 * width, width)
        self.second = nn.Linear(width, width)
        for layer in (self.first, self.second):
            init_weights(layer)

    def forward(
        self, features: Float[Tensor, "*batch D"], observation: dict[str, Tensor]
    ) -> Float[Tensor, "*batch D"]:
        """The features, with what the observations add to them."""
        encoding = self.encoder({name: observation[name] for name in self.names})
        hidden = torch.relu(self.first(torch.cat([features, encoding.to(features)], dim=-1)))
        out: Tensor = features + self.second(hidden)
        return out
