"""The agent's network: encoder, torso, and the heads for action and value."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.profiler import record_function

from mtxl_rl.agents.decoders import ObservationDecoder
from mtxl_rl.agents.encoders import (
    ACTION_MASK,
    IMAGE_ENCODERS,
    ObservationEncoder,
    StepEncoder,
    observation_leaves,
)
from mtxl_rl.agents.heads import ValueHead, build_head
from mtxl_rl.agents.transition import EPISODE_STEP, Decision, PolicyInputs
from mtxl_rl.torso import (
    Cache,
    Diagnostics,
    MemoryState,
    MemoryTransformer,
    Torso,
    TorsoConfig,
    build_torso,
    match_parameters,
)

# B rows, T steps, D width.

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The policy around the torso."""

    image_encoder: str = "cnn"
    """For image observations: cnn (three convolutions) or resnet (IMPALA's)."""
    previous_action: bool = True
    """Whether the previous action is an input; zero at an episode's first step."""
    previous_reward: bool = True
    """Whether the previous reward is an input; zero at an episode's first step."""
    episode_step: bool = False
    """Whether the step's number in its episode is an input, so that the memory can be queried by
    time. Leave it off for tasks that do not ask for a time, and for episodes longer than in
    training."""
    reconstruction_coef: float = 0.0
    """Weight of the loss of reconstructing the observation from the torso's output; 0: none."""
    precision: str = "auto"
    """Arithmetic of the matrix products: float32, bfloat16 (autocast), or auto: bfloat16 on a GPU,
    float32 on a CPU."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.image_encoder not in IMAGE_ENCODERS:
            raise ValueError(
                f"policy.image_encoder={self.image_encoder} is unknown; choose one of "
                f"{', '.join(IMAGE_ENCODERS)}"
            )
        if not self.reconstruction_coef >= 0:
            raise ValueError(
                f"policy.reconstruction_coef={self.reconstruction_coef} must be 0 or more"
            )
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(
                f"policy.precision={self.precision} is unknown; choose one of "
                f"{', '.join(('auto', *PRECISIONS))}"
            )

    def for_device(self, device: torch.device) -> "PolicyConfig":
        """These options with the precision that `auto` chooses for a device."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if device.type == "cuda" else "float32")


class PolicyOutputs(NamedTuple):
    """Action-distribution parameters and value estimate."""

    action_parameters: Float[Tensor, "*batch n"]
    value: Float[Tensor, "*batch"]
    reconstruction_loss: Float[Tensor, "*batch"] | None = None
    """Per step; None without gradients or where `policy.reconstruction_coef` is 0."""


class Policy(nn.Module):
    """Encoder, torso and heads.

    `forward` computes T steps for learning, `act` one step for acting; both compute the same
    function of an episode.

    Raises:
        ValueError: no encoder or head covers a space.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        torso: TorsoConfig,
        policy: PolicyConfig,
    ) -> None:
        super().__init__()
        torso = match_parameters(torso)
        width = torso.width
        # `build_policy` chooses by the device that the policy is moved to.
        self.config = policy.for_device(torch.get_default_device())
        self.encoder = ObservationEncoder(observation_space, width, image=policy.image_encoder)
        self.action_head = build_head(action_space, width)
        self.previous_action = (
            nn.Linear(self.action_head.encoded_width, width, bias=False)
            if policy.previous_action
            else None
        )
        self.previous_reward = nn.Linear(1, width, bias=False) if policy.previous_reward else None
        self.episode_step = StepEncoder(width) if policy.episode_step else None
        if policy.episode_step and EPISODE_STEP in observation_leaves(observation_space):
            raise ValueError(
                f"the observation has a key {EPISODE_STEP!r}, which policy.episode_step=true adds; "
                "set policy.episode_step=false, or rename the key with a "
                "gymnasium.ObservationWrapper"
            )
        self.torso: Torso = build_torso(torso)
        self.value_head = ValueHead(width)
        self.decoder = (
            ObservationDecoder(observation_space, width) if policy.reconstruction_coef else None
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial weights that differ from torch's; encoders set their own.

        | weight      | initial value             | reason                                   |
        |-------------|---------------------------|------------------------------------------|
        | action head | orthogonal, gain 0.01     | a near-uniform first policy              |
        | value head  | orthogonal, gain 0.01     | values start at the mean return (PopArt) |
        | gates' bias | torso.gate_bias (in gates)| every sub-layer starts near the identity |
        """
        for head in (self.action_head.output, self.value_head.output):
            nn.init.orthogonal_(head.weight, 0.01)
            nn.init.zeros_(head.bias)

    def forward(
        self, inputs: PolicyInputs, state: MemoryState
    ) -> tuple[PolicyOutputs, MemoryState]:
        """Outputs of T steps and the memory after them; the inputs are [B, T, ...]."""
        with self.autocast():
            with record_function("encoder"):
                features = self._encode(inputs)
            with record_function("torso"):
                features, state = self.torso(features, state, inputs.is_first)
            with record_function("heads"):
                outputs = self._heads(features, inputs)
                if self.decoder is not None and torch.is_grad_enabled():
                    loss = self.decoder.loss(features, inputs.observation)
                    outputs = outputs._replace(reconstruction_loss=loss)
            return outputs, state

    @torch.no_grad()
    def inspect(self, inputs: PolicyInputs, state: MemoryState) -> list[Diagnostics]:
        """Diagnostics of each layer at T steps; see `MemoryTransformer.inspect`.

        Raises:
            ValueError: the torso is a baseline, which has no diagnostics.
        """
        if not isinstance(self.torso, MemoryTransformer):
            raise ValueError(
                f"torso.kind={self.torso.config.kind} has no memory diagnostics; only "
                "torso.kind=transformer does"
            )
        with self.autocast():
            inspection = self.torso.inspect(self._encode(inputs), state, inputs.is_first)
        return inspection.diagnostics

    @torch.no_grad()
    def prefill(self, state: MemoryState, *, timeline: Tensor | None = None) -> Cache:
        """Cache to act with from `state`; see `MemoryTransformer.prefill`."""
        with self.autocast():
            return self.torso.prefill(state, timeline=timeline)

    @torch.no_grad()
    def act(self, inputs: PolicyInputs, cache: Cache, noise: Tensor | None = None) -> Decision:
        """Act for one step; inputs are [B, ...] and `cache` is updated in place.

        Args:
            inputs: observation, previous action and reward.
            cache: from `prefill`.
            noise: from `action_head.noise`; None takes the most probable action, or the mean.
        """
        with self.autocast():
            return self.decode_step(inputs, cache, noise)

    def decode_step(self, inputs: PolicyInputs, cache: Cache, noise: Tensor | None) -> Decision:
        """`act` without its contexts: fixed shapes and no host-device synchronisation.

        The executor may replace it by a compiled function.
        """
        outputs = self.step_outputs(inputs, cache)
        action = self.action_head.sample(outputs.action_parameters, noise)
        log_prob = self.action_head.log_prob(outputs.action_parameters, action)
        return Decision(action, log_prob, outputs.value)

    def step_outputs(self, inputs: PolicyInputs, cache: Cache) -> PolicyOutputs:
        """Outputs of one step, of which `decode_step` takes an action; updates `cache` in place."""
        features = self.torso.decode_step(self._encode(inputs), cache, inputs.is_first)
        return self._heads(features, inputs)

    def autocast(self) -> torch.autocast:
        """Context of `policy.precision`; around a whole rollout it casts each weight once."""
        dtype = PRECISIONS[self.config.precision]
        device = self.value_head.output.weight.device
        return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def _encode(self, inputs: PolicyInputs) -> Float[Tensor, "*batch D"]:
        features: Tensor = self.encoder(inputs.observation)
        is_first = inputs.is_first[..., None]
        if self.previous_action is not None:
            action = self.action_head.encode(inputs.previous_action).masked_fill(is_first, 0)
            features = features + self.previous_action(action.to(features.dtype))
        if self.previous_reward is not None:
            reward = inputs.previous_reward[..., None].masked_fill(is_first, 0)
            features = features + self.previous_reward(reward.to(features.dtype))
        if self.episode_step is not None:
            # Scaled to the observation's features: with twice their size, Autoencode (large
            # embeddings) and MortarMayhem (a vector) were learned sooner than with once.
            size = (features.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            features = features + 2 * size * self.episode_step(inputs.observation[EPISODE_STEP])
        return features

    def _heads(self, features: Float[Tensor, "*batch D"], inputs: PolicyInputs) -> PolicyOutputs:
        """Outputs of the heads, in float32: the cost is negligible, bfloat16 logits inaccurate."""
        mask = inputs.observation.get(ACTION_MASK)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.value_head.output.weight.dtype)
            return PolicyOutputs(self.action_head(features, mask), self.value_head(features))
