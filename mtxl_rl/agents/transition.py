"""One step of acting as values: the policy's inputs, its decision and the outcome."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

# B environments, T steps.

EPISODE_STEP = "episode_step"
"""The leaf that the actor adds to the observation where `policy.episode_step` is set."""

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each observation leaf, by name."""


class PolicyInputs(NamedTuple):
    """Inputs of a policy; the leading axes are [B] when acting and [B, T] when learning."""

    observation: Mapping[str, Tensor]
    """Observation leaves; includes `EPISODE_STEP` where the policy uses it."""
    previous_action: Tensor
    previous_reward: Tensor
    is_first: Bool[Tensor, "*batch"]

    def unsqueeze_time(self) -> "PolicyInputs":
        """Inputs [B, ...] of one step as a sequence [B, 1, ...]."""
        observation = {key: leaf[:, None] for key, leaf in self.observation.items()}
        return PolicyInputs(observation, *(field[:, None] for field in self[1:]))


class Lead(NamedTuple):
    """A teacher's actions, and the environments in which they are taken."""

    action: Tensor
    is_led: Bool[Tensor, " B"]


class Decision(NamedTuple):
    """A policy's action at one step."""

    action: Tensor
    log_prob: Float[Tensor, " B"]
    value: Float[Tensor, " B"]


class Transition(NamedTuple):
    """One step of every environment: inputs, decision and outcome."""

    inputs: PolicyInputs
    decision: Decision
    is_reset_row: Bool[Tensor, " B"]
    """True in the row after an episode's end, whose action the environment ignores."""
    reward: Float[Tensor, " B"]
    """The task's reward, which the policy receives as an input of its next step."""
    training_reward: Float[Tensor, " B"]
    """The reward to learn from: the task's, unless the environment reports another one."""
    terminated: Bool[Tensor, " B"]
    teacher: "TeacherStep | None" = None


class TeacherStep(NamedTuple):
    """A teacher's targets; the leading axes are [B], in a rollout [B, T]."""

    parameters: Float[Tensor, "*batch n"]
    """Parameters of its action distribution; see `heads`."""
    is_led: Bool[Tensor, "*batch"]
    """True where its action was taken."""


def observation_shapes(space: gymnasium.Space[Any], *, episode_step: bool) -> Shapes:
    """Shape and tensor dtype of each leaf that a policy receives, the action mask included."""
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"obs": space}
    shapes = {key: (leaf.shape or (), _tensor_dtype(leaf.dtype)) for key, leaf in leaves.items()}
    return shapes | {EPISODE_STEP: ((), torch.long)} if episode_step else shapes


def _tensor_dtype(dtype: Any) -> torch.dtype:  # noqa: ANN401
    """Keep uint8 and int8; bool becomes int8, other integers int64 and floats float32."""
    if dtype in (np.uint8, np.int8, np.bool_):
        return torch.uint8 if dtype == np.uint8 else torch.int8
    return torch.float32 if np.issubdtype(dtype, np.floating) else torch.long


def to_tensors(
    leaves: Mapping[str, Any], shapes: Shapes, device: torch.device
) -> dict[str, Tensor]:
    """Copy a batch of observation leaves to tensors on `device`.

    Copies to a GPU go through pinned memory, so that the host does not wait for them.
    """
    copies = {key: torch.as_tensor(np.array(leaves[key])) for key in shapes}
    if device.type == "cuda":
        copies = {key: copy.pin_memory() for key, copy in copies.items()}
    return {
        key: copies[key].to(device, dtype, non_blocking=True) for key, (_, dtype) in shapes.items()
    }
