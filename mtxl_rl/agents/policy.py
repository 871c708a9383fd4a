"""The agent's network: encoder, torso, and the heads for action and value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.profiler import record_function

from mtxl_rl.agents.decoders import MovementDecoder, ObservationDecoder
from mtxl_rl.agents.encoders import (
    IMAGE_ENCODERS,
    ObservationEncoder,
    StepEncoder,
    observation_leaves,
)
from mtxl_rl.agents.heads import ValueHead, build_head
from mtxl_rl.agents.privileged import (
    AuxiliaryConfig,
    CriticConfig,
    PrivilegedCritic,
    observation_groups,
)
from mtxl_rl.agents.transition import (
    EPISODE_STEP,
    Decision,
    Lead,
    PolicyInputs,
    Shapes,
    observation_shapes,
)
from mtxl_rl.env_keys import ACTION_MASK_KEY
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
from mtxl_rl.torso.torso_config import check_choice

# B rows, T steps, D width.

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The policy around the torso."""

    observations: list[str] = field(default_factory=list)
    """Leaves of a Dict observation that the policy receives; empty: all."""
    image_encoder: str = "cnn"
    """Encoder of image observations: cnn (three convolutions), patches (8x8 pixels and one
    convolution, a quarter of cnn's operations) or resnet (IMPALA's)."""
    previous_action: bool = True
    """Whether the previous action is an input; zero at an episode's first step."""
    previous_reward: bool = True
    """Whether the previous reward is an input; zero at an episode's first step."""
    episode_step: bool = False
    """Whether the step's number in its episode is an input, so that the memory can be queried by
    time. Leave it off for tasks that do not ask for a time, and for episodes longer than in
    training."""
    precision: str = "auto"
    """Arithmetic of the matrix products: float32, bfloat16 (autocast), or auto: bfloat16 on a GPU,
    float32 on a CPU."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_choice("policy.image_encoder", self.image_encoder, IMAGE_ENCODERS)
        check_choice("policy.precision", self.precision, ("auto", *PRECISIONS))

    def for_device(self, device: torch.device) -> "PolicyConfig":
        """These options with the precision that `auto` chooses for a device."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bfloat16" if device.type == "cuda" else "float32")


class PolicyOutputs(NamedTuple):
    """Action-distribution parameters and value estimate."""

    action_parameters: Float[Tensor, "*batch n"]
    value: Float[Tensor, "*batch"]
    """NaN where the observation lacks leaves of `critic.observations`, as when acting."""
    prediction_losses: Mapping[str, Float[Tensor, "*batch"]] = {}
    """Per step, of each leaf of `auxiliary.predict` and `.movement`; empty without gradients."""


class Policy(nn.Module):
    """Encoder, torso and heads.

    `forward` computes T steps for learning, `act` one step for acting; both compute the same
    function of an episode.

    Raises:
        ValueError: no encoder or head covers a space, or an observation's name is unknown.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        torso: TorsoConfig,
        policy: PolicyConfig,
        critic: CriticConfig | None = None,
        auxiliary: AuxiliaryConfig | None = None,
    ) -> None:
        super().__init__()
        torso = match_parameters(torso)
        width, image = torso.width, policy.image_encoder
        # `build_policy` chooses by the device that the policy is moved to.
        self.config = policy.for_device(torch.get_default_device())
        groups = observation_groups(
            observation_space,
            policy=policy.observations,
            critic=critic.observations if critic else (),
            predicted=auxiliary.predict if auxiliary else (),
            movement=auxiliary.movement if auxiliary else (),
        )
        self.observation_space, self.training_space = groups.policy, groups.training
        self.encoder = ObservationEncoder(groups.policy, width, image=image)
        self.action_head = build_head(action_space, width)
        self.previous_action = (
            nn.Linear(self.action_head.encoded_width, width, bias=False)
            if policy.previous_action
            else None
        )
        self.previous_reward = nn.Linear(1, width, bias=False) if policy.previous_reward else None
        self.episode_step = StepEncoder(width) if policy.episode_step else None
        if policy.episode_step:
            _check_step_key_is_free(groups.training)
        self.torso: Torso = build_torso(torso)
        self.value_head = ValueHead(width)
        self.critic_leaves = list(groups.critic or ())
        self.critic = PrivilegedCritic(groups.critic, width, image=image) if groups.critic else None
        self.decoder = ObservationDecoder(groups.predicted, width) if groups.predicted else None
        self.movement_decoder = None
        if auxiliary and auxiliary.movement:
            self.movement_decoder = MovementDecoder(*auxiliary.movement)
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

    def input_shapes(self, *, is_training: bool = False) -> Shapes:
        """The leaves that the policy receives; in training also those that acting does not need."""
        space = self.training_space if is_training else self.observation_space
        return observation_shapes(space, episode_step=self.config.episode_step)

    def forward(
        self, inputs: PolicyInputs, state: MemoryState
    ) -> tuple[PolicyOutputs, MemoryState]:
        """Outputs of T steps and the memory after them; the inputs are [B, T, ...]."""
        with self.autocast():
            with record_function("encoder"):
                encoded = self._encode(inputs)
            with record_function("torso"):
                features, after = self.torso(encoded, state, inputs.is_first)
            with record_function("heads"):
                outputs = self._heads(features, inputs)
                if torch.is_grad_enabled():
                    losses = self._prediction_losses(features, encoded, inputs, state)
                    outputs = outputs._replace(prediction_losses=losses)
            return outputs, after

    @property
    def explained_leaves(self) -> list[str]:
        """The leaves of `PolicyOutputs.prediction_losses` whose loss is 1 - R^2."""
        leaves = list(self.decoder.vectors) if self.decoder else []
        return leaves + list(self.movement_decoder.keys if self.movement_decoder else ())

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
    def prefill(
        self, state: MemoryState, *, num_steps: int = 128, timeline: Tensor | None = None
    ) -> Cache:
        """Cache to act with from `state`; see `MemoryTransformer.prefill`."""
        with self.autocast():
            return self.torso.prefill(state, num_steps=num_steps, timeline=timeline)

    def initial_action(self, batch_size: int) -> Tensor:
        """The previous action of `batch_size` episodes that are about to start: all zeros."""
        shape, dtype = (batch_size, *self.action_head.action_shape), self.action_head.action_dtype
        return torch.zeros(shape, dtype=dtype, device=self.value_head.output.weight.device)

    @torch.no_grad()
    def act(
        self,
        inputs: PolicyInputs,
        cache: Cache,
        noise: Tensor | None = None,
        lead: Lead | None = None,
    ) -> Decision:
        """Act for one step; inputs are [B, ...] and `cache` is updated in place.

        Args:
            inputs: observation, previous action and reward.
            cache: from `prefill`.
            noise: from `action_head.noise`; None takes the most probable action, or the mean.
            lead: actions of a teacher, taken where it leads; their log-probabilities are the
                policy's.
        """
        with self.autocast():
            return self.decode_step(inputs, cache, noise, lead)

    def decode_step(
        self, inputs: PolicyInputs, cache: Cache, noise: Tensor | None, lead: Lead | None = None
    ) -> Decision:
        """`act` without its contexts: fixed shapes and no host-device synchronisation."""
        outputs = self.step_outputs(inputs, cache)
        action = self.action_head.sample(outputs.action_parameters, noise)
        if lead is not None:
            action = torch.where(lead.is_led[:, None], lead.action, action)
        log_prob = self.action_head.log_prob(outputs.action_parameters, action)
        return Decision(action, log_prob, outputs.value)

    def step_outputs(self, inputs: PolicyInputs, cache: Cache) -> PolicyOutputs:
        """Outputs of one step, of which `decode_step` takes an action; updates `cache` in place."""
        features = self.torso.decode_step(self._encode(inputs), cache, inputs.is_first)
        return self._heads(features, inputs)

    @torch.no_grad()
    def predict(self, inputs: PolicyInputs, cache: Cache) -> dict[str, Float[Tensor, "B numbers"]]:
        """The numbers among the leaves of `auxiliary.predict`, predicted after one step.

        `cache` is updated in place, as by `act`.
        """
        vectors = self.decoder.vectors if self.decoder else {}
        with self.autocast():
            features = self.torso.decode_step(self._encode(inputs), cache, inputs.is_first)
            return {leaf: decoder.predict(features) for leaf, decoder in vectors.items()}

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

    def _prediction_losses(
        self,
        features: Float[Tensor, "B T D"],
        encoded: Float[Tensor, "B T D"],
        inputs: PolicyInputs,
        state: MemoryState,
    ) -> dict[str, Float[Tensor, "B T"]]:
        """Losses of the auxiliary predictions, from the torso's outputs and inputs."""
        losses = self.decoder.losses(features, inputs.observation) if self.decoder else {}
        if self.movement_decoder is None:
            return losses
        assert isinstance(self.torso, MemoryTransformer)
        movement = self.torso.movements(encoded, state, inputs.is_first)
        return losses | self.movement_decoder.losses(movement, inputs.observation)

    def _heads(self, features: Float[Tensor, "*batch D"], inputs: PolicyInputs) -> PolicyOutputs:
        """Outputs of the heads, in float32: the cost is negligible, bfloat16 logits inaccurate."""
        mask = inputs.observation.get(ACTION_MASK_KEY)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.value_head.output.weight.dtype)
            value = self._value(features, inputs.observation)
            return PolicyOutputs(self.action_head(features, mask), value)

    def _value(
        self, features: Float[Tensor, "*batch D"], observation: Mapping[str, Tensor]
    ) -> Float[Tensor, "*batch"]:
        if any(name not in observation for name in self.critic_leaves):
            return torch.full_like(features[..., 0], torch.nan)
        if self.critic is not None:
            features = self.critic(features, observation)
        return torch.as_tensor(self.value_head(features))


def _check_step_key_is_free(space: gymnasium.Space[Any]) -> None:
    """Check that the observation has no key of the name under which its step is added."""
    if EPISODE_STEP in observation_leaves(space):
        raise ValueError(
            f"the observation has a key {EPISODE_STEP!r}, which policy.episode_step=true adds; "
            "set policy.episode_step=false, or rename the key with a gymnasium.ObservationWrapper"
        )
