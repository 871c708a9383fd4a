"""Records the first environment of an evaluation, and the agent's memory in it.

T recorded steps, h x w pixels.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from jaxtyping import Float, UInt8

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.encoders import channels_last, is_image, observation_leaves
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.torso import Diagnostics, MemoryTransformer
from mtxl_rl.tracking.cli import print_line


class Recording:
    """Record of the first environment of an evaluation, up to `max_steps` steps.

    The memory's diagnostics are computed afterwards, by `Policy.inspect` over all recorded inputs:
    the policy computes the same outputs while acting and while learning.

    Args:
        space: The observations of one environment.
        policy: The policy that acts; None if none does.
        max_steps: Number of steps to record.
        title: Name of the task, for the titles of the pictures.
        renders: Whether the environment draws itself for the video, if it can.
    """

    def __init__(
        self,
        space: Space[Any],
        *,
        policy: Policy | None = None,
        max_steps: int,
        title: str = "",
        renders: bool = True,
    ) -> None:
        self.policy = policy
        self.leaves = observation_leaves(space)
        self.max_steps = max_steps
        self.title = ": ".join(filter(None, (title, _agent_name(policy))))
        self.inputs: list[PolicyInputs] = []
        self.observation_names: Sequence[str] = ()
        """Names of a vector observation's first components, where the task has any."""
        self._renders = renders
        self.frames: list[UInt8[np.ndarray, "h w 3"]] = []
        """Pictures that the environment draws of itself: of the whole task, where it has any."""

    @property
    def has_diagnostics(self) -> bool:
        """Whether the torso has attention and a memory to inspect; the baselines have not."""
        return self.policy is not None and isinstance(self.policy.torso, MemoryTransformer)

    def observe(self, actor: Actor) -> None:
        """Record the current step of an actor's first environment, with its picture if any."""
        self.observe_env(actor.env, actor.inputs())

    def observe_env(self, env: Any, inputs: PolicyInputs) -> None:  # noqa: ANN401
        """Record a step of the first of some environments, up to `max_steps`."""
        if len(self.inputs) < self.max_steps:
            self.observation_names = getattr(env.unwrapped, "observation_names", ())
            self.add(inputs)
            self._render(env)

    def add(self, inputs: PolicyInputs) -> None:
        """Record the first environment's step, up to `max_steps`."""
        if len(self.inputs) < self.max_steps:
            observation = {key: field[0] for key, field in inputs.observation.items()}
            self.inputs.append(PolicyInputs(observation, *(field[0] for field in inputs[1:])))

    @cached_property
    def diagnostics(self) -> list[Diagnostics]:
        """Diagnostics of each layer over the recorded steps; read it after the last `add`."""
        if self.policy is None or not self.has_diagnostics:
            return []
        return self.policy.inspect(self._stacked(), self.policy.torso.initial_state(1))

    def rewards(self) -> Float[np.ndarray, " T"]:
        """Reward of each step's action; NaN at the last step, where it is not known."""
        rewards = [step.previous_reward.item() for step in self.inputs[1:]]
        return np.array([*rewards, np.nan])

    def image_key(self) -> str | None:
        """The first part of the observation that is an image."""
        return next((key for key, space in self.leaves.items() if is_image(space)), None)

    def returns(self) -> Float[np.ndarray, " T"]:
        """Return of the episode before each step."""
        returns = [0.0]
        for step in self.inputs[1:]:
            earned = returns[-1] + step.previous_reward.item()
            returns.append(0.0 if step.is_first else earned)
        return np.array(returns[: len(self.inputs)])

    def pictures(self) -> dict[str, list[UInt8[np.ndarray, "h w c"]]]:
        """Pictures of every step, by title: what the agent sees, and what the environment draws."""
        images = {"what the agent sees": self._images(), "the task": self.frames}
        return {title: pictures for title, pictures in images.items() if pictures}

    def vectors(self) -> Float[np.ndarray, "T n"]:
        """The numbers of each step's observation."""
        columns = [
            torch.stack([step.observation[key].float().flatten() for step in self.inputs])
            for key in self.leaves
        ]
        return torch.cat(columns, dim=1).cpu().numpy()

    def component_names(self) -> list[str]:
        """Names of the first columns of `vectors`; of a Dict's leaf, only the first has a name."""
        if self.observation_names or len(self.leaves) == 1:
            return list(self.observation_names)
        sizes = {key: math.prod(space.shape or ()) for key, space in self.leaves.items()}
        return [name for key, size in sizes.items() for name in [key, *[""] * (size - 1)]]

    def _images(self) -> list[UInt8[np.ndarray, "h w c"]]:
        """The first image of each step's observation, with 1 or 3 channels, if it has any."""
        key = self.image_key()
        if key is None:
            return []
        images = [step.observation[key].cpu().numpy() for step in self.inputs]
        if not channels_last(images[0].shape):
            images = [image.transpose(1, 2, 0) for image in images]
        if images[0].shape[2] == 3:
            return images
        return [image.mean(axis=2, keepdims=True).astype(np.uint8) for image in images]

    def _render(self, env: Any) -> None:  # noqa: ANN401
        """Record the environment's picture; one that fails is reported once and left out."""
        if not self._renders:
            return
        try:
            frame = _render_first(env, has_image=self.image_key() is not None)
        except Exception as error:
            print_line(f"the environment was not drawn: {type(error).__name__}: {error}")
            frame = None
        if frame is None:
            self._renders = False
            self.frames.clear()
        else:
            self.frames.append(frame)

    def _stacked(self) -> PolicyInputs:
        """All steps as one row, [1, T, ...]."""
        steps = self.inputs
        observation = {
            key: torch.stack([step.observation[key] for step in steps])[None]
            for key in steps[0].observation
        }
        fields = zip(*(step[1:] for step in steps), strict=True)
        return PolicyInputs(observation, *(torch.stack(field)[None] for field in fields))


def _agent_name(policy: Policy | None) -> str:
    """The torso's kind and memory, as in `transformer with delta memory`; empty without them."""
    if policy is None:
        return ""
    config = policy.torso.config
    is_transformer = config.kind == "transformer"
    return f"transformer with {config.long_term} memory" if is_transformer else config.kind


def _render_first(env: Any, *, has_image: bool) -> UInt8[np.ndarray, "h w 3"] | None:  # noqa: ANN401
    """A picture of the first environment of a vector: a built-in task's, or of its render mode.

    With image observations, a render mode would show the same again.
    """
    base = env.unwrapped
    if hasattr(base, "render_row"):
        return np.asarray(base.render_row(0))
    if not has_image and getattr(base, "render_mode", None) == "rgb_array":
        frames = env.render()
        return None if frames is None else np.asarray(frames[0])
    return None
