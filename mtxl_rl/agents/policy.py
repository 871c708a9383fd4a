"""The agent's network: encoder, torso, and the heads for action and value."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtxl_rl.agents.decoders import ObservationDecoder
from mtxl_rl.agents.encoders import (
    ACTION_MASK,
    EPISODE_STEP,
    IMAGE_ENCODERS,
    ObservationEncoder,
    StepEncoder,
    observation_leaves,
)
from mtxl_rl.agents.heads import ValueHead, build_head
from mtxl_rl.runtime.compile import compiled
from mtxl_rl.runtime.cuda_graph import Capture, Replayed, capture
from mtxl_rl.torso import (
    Cache,
    DecodeCache,
    Diagnostics,
    MemoryState,
    MemoryTransformer,
    Torso,
    TorsoConfig,
    build_torso,
    match_parameters,
)
from mtxl_rl.torso.layer import Layer

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """What stands around the torso."""

    image_encoder: str = "cnn"
    """For image observations: cnn (three convolutions) or resnet (IMPALA's)."""
    previous_action: bool = True
    """Whether the last action is an input; zero at an episode's first step."""
    previous_reward: bool = True
    """Whether the last reward is an input; zero at an episode's first step."""
    episode_step: bool = False
    """Whether the step's number in its episode is an input: what was seen at a given time can then
    be asked for by it. Not for tasks that ask for no time (EXPERIMENTS.md), nor for episodes longer
    than in training, whose numbers are new."""
    reconstruction_coef: float = 0.0
    """Weight of the loss of predicting the observation back from the torso's output; 0: none."""
    precision: str = "float32"
    """Arithmetic of the matrix products: float32, or bfloat16 (autocast)."""

    def __post_init__(self) -> None:
        """Check the names."""
        if self.image_encoder not in IMAGE_ENCODERS:
            raise ValueError(
                f"policy.image_encoder={self.image_encoder} is unknown; choose one of "
                f"{', '.join(IMAGE_ENCODERS)}"
            )
        if not self.reconstruction_coef >= 0:
            raise ValueError(
                f"policy.reconstruction_coef={self.reconstruction_coef} must be 0 or more"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"policy.precision={self.precision} is unknown; choose one of "
                f"{', '.join(PRECISIONS)}"
            )


class PolicyInputs(NamedTuple):
    """What a policy sees; the leading axes are [B] when acting and [B, T] when learning."""

    observation: Mapping[str, Tensor]
    """Its leaves; of a policy with `episode_step` that number, too."""
    previous_action: Tensor
    previous_reward: Tensor
    is_first: Bool[Tensor, "*batch"]


class PolicyOutputs(NamedTuple):
    """What a policy says."""

    action_parameters: Float[Tensor, "*batch n"]
    value: Float[Tensor, "*batch"]
    reconstruction_loss: Float[Tensor, "*batch"] | None = None
    """Of each step, where gradients are wanted and `policy.reconstruction_coef` is above 0."""


class Decision(NamedTuple):
    """What a policy does at one step."""

    action: Tensor
    log_prob: Float[Tensor, " B"]
    value: Float[Tensor, " B"]


class Policy(nn.Module):
    """Encoder + torso + heads.

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
        self.config = policy
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
                "leave that out, or rename the key with a gymnasium.ObservationWrapper"
            )
        self.torso: Torso = build_torso(torso)
        self.value_head = ValueHead(width)
        self.decoder = (
            ObservationDecoder(observation_space, width) if policy.reconstruction_coef else None
        )
        self._whole_step: _Step | None = None
        """`_step` as one call: compiled, replayed, or both."""
        self._replayed: _ReplayedStep | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """Start values that are not torch's own; encoders have theirs, `encoders.init_weights`.

        | weight      | start                     | why                                      |
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
        """What the policy says at T steps, and the state after them; inputs are [B, T, ...]."""
        with self.autocast():
            features, state = self.torso(self._encode(inputs), state, inputs.is_first)
            outputs = self._say(features, inputs)
            if self.decoder is not None and torch.is_grad_enabled():
                loss = self.decoder.loss(features, inputs.observation)
                outputs = outputs._replace(reconstruction_loss=loss)
            return outputs, state

    def inspect(self, inputs: PolicyInputs, state: MemoryState) -> list[Diagnostics]:
        """What happens in each layer at T steps; see `MemoryTransformer.inspect`.

        Raises:
            ValueError: the torso is a baseline, which tells nothing.
        """
        if not isinstance(self.torso, MemoryTransformer):
            raise ValueError(
                f"torso.kind={self.torso.config.kind} tells nothing of its memory; only "
                "torso.kind=transformer does"
            )
        with torch.no_grad(), self.autocast():
            found = self.torso.inspect(self._encode(inputs), state, inputs.is_first)
        return found.diagnostics

    def begin(self, state: MemoryState, *, timeline: Tensor | None = None) -> Cache:
        """Prepare to act from `state`; see `MemoryTransformer.prefill`.

        After `replay_acting`, a timeline that was given before gets the memory that it had then,
        which goes on from `state`: its steps are recorded on the tensors that it holds.
        """
        with self.autocast():
            memory = self.torso.prefill(state, timeline=timeline)
        if self._replayed is None or timeline is None:
            return memory
        assert isinstance(memory, DecodeCache), type(memory)  # replay_acting has seen to it
        return self._replayed.keep(self, memory)

    @torch.no_grad()
    def act(
        self,
        inputs: PolicyInputs,
        memory: Cache,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """One step; inputs are [B, ...] and `memory` moves on in place.

        Args:
            inputs: what is seen.
            memory: what is remembered.
            generator: draws the actions; None: each is the likeliest, or the mean.
        """
        noise = None
        if generator is not None:
            noise = self.action_head.noise(len(inputs.is_first), generator)
        with self.autocast():
            if self._whole_step is not None:
                assert isinstance(memory, DecodeCache), type(memory)
                return self._whole_step(self, inputs, memory, noise)
            features = self.torso.decode_step(self._encode(inputs), memory, inputs.is_first)
            return self._decide(features, inputs, noise)

    def act_at_once(self, inputs: PolicyInputs, memory: Cache, noise: Tensor | None) -> Decision:
        """`act` as one graph that asks the host nothing; see `MemoryTransformer.decode_step`."""
        features = self.torso.decode_step(self._encode(inputs), memory, inputs.is_first)
        return self._decide(features, inputs, noise)

    def twin(self, dtype: torch.dtype) -> "Policy":
        """A copy with weights of `dtype`, neither compiled nor replayed; float64 is exact."""
        step, replayed = self._whole_step, self._replayed
        self._whole_step = self._replayed = None  # A graph is bound to its tensors.
        try:
            twin = deepcopy(self)
        finally:
            self._whole_step, self._replayed = step, replayed
        for module in twin.modules():  # Methods that a profile has replaced call the original.
            for name in [name for name in vars(module) if callable(getattr(type(module), name, 0))]:
                delattr(module, name)
        if dtype == torch.float64:
            twin.config = replace(self.config, precision="float32")
        return twin.to(dtype)

    def compile_acting(self) -> None:
        """Compile `act` from the observation to the action, at its first use.

        Each number of rows and size of a rollout is compiled for itself.
        """
        assert isinstance(self.torso, MemoryTransformer), self.torso.config.kind
        self._whole_step = compiled(Policy._step, self._device)  # Of the class: a copy runs itself.

    def replay_acting(self, *, capture: Capture = capture) -> None:
        """Make `act`, compiled or not, a CUDA graph for each timeline that `begin` is given.

        From then on weights may change in place alone, as an optimiser and `load_state_dict` change
        them: see `Replayed`.
        """
        assert isinstance(self.torso, MemoryTransformer), self.torso.config.kind
        self._replayed = _ReplayedStep(self._whole_step or Policy._step, capture)
        self._whole_step = self._replayed

    def compile_learning(self) -> None:
        """Compile the torso's layers, at the first use with gradients."""
        run = compiled(Layer.forward, self._device, for_learning=True)
        for layer in self._transformer.layers:
            layer.forward = partial(_run_layer, run, layer)

    @contextmanager
    def uncompiled_learning(self) -> Iterator[bool]:
        """Inside, the layers run without the compiler; yields whether they are compiled outside."""
        kept = {layer: vars(layer).pop("forward") for layer in self._layers_compiled()}
        try:
            yield bool(kept)
        finally:
            for layer, forward in kept.items():
                layer.forward = forward

    def _layers_compiled(self) -> list[nn.Module]:
        return [
            module
            for module in self.torso.modules()
            if isinstance(module, Layer) and isinstance(vars(module).get("forward"), partial)
        ]

    @property
    def acts_at_once(self) -> bool:
        """Whether a step of `act` is one call, by `compile_acting` or `replay_acting`."""
        return self._whole_step is not None

    @property
    def _device(self) -> torch.device:
        return self.value_head.output.weight.device

    def autocast(self, *, keeps_casts: bool = True) -> torch.autocast:
        """The precision's context; around a whole rollout it casts weights once, not each step.

        Without `keeps_casts` they are cast again wherever they are read.
        """
        dtype = PRECISIONS[self.config.precision]
        return torch.autocast(
            self._device.type,
            dtype=torch.bfloat16,
            enabled=dtype == torch.bfloat16,
            cache_enabled=keeps_casts,
        )

    def _encode(self, inputs: PolicyInputs) -> Tensor:
        features: Tensor = self.encoder(inputs.observation)
        is_first = inputs.is_first[..., None]
        if self.previous_action is not None:
            action = self.action_head.encode(inputs.previous_action).masked_fill(is_first, 0)
            features = features + self.previous_action(action.to(features.dtype))
        if self.previous_reward is not None:
            reward = inputs.previous_reward[..., None].masked_fill(is_first, 0)
            features = features + self.previous_reward(reward.to(features.dtype))
        if self.episode_step is not None:
            # In proportion to what is seen, whatever encoder that has: twice that was learned from
            # sooner than once, in Autoencode (large embeddings) and in MortarMayhem (a vector).
            size = (features.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            features = features + 2 * size * self.episode_step(inputs.observation[EPISODE_STEP])
        return features

    @property
    def _transformer(self) -> MemoryTransformer:
        """The torso, of the kind whose steps have fixed shapes."""
        assert isinstance(self.torso, MemoryTransformer), self.torso.config.kind
        return self.torso

    def _step(self, inputs: PolicyInputs, memory: DecodeCache, noise: Tensor | None) -> Decision:
        """What is compiled and replayed: one graph that serves every step."""
        return self._decide(
            self._transformer.decode_step(self._encode(inputs), memory, inputs.is_first),
            inputs,
            noise,
        )

    def _decide(self, features: Tensor, inputs: PolicyInputs, noise: Tensor | None) -> Decision:
        parameters, value, _ = self._say(features, inputs)
        action = self.action_head.sample(parameters, noise)
        return Decision(action, self.action_head.log_prob(parameters, action), value)

    def _say(self, features: Tensor, inputs: PolicyInputs) -> PolicyOutputs:
        mask = inputs.observation.get(ACTION_MASK)
        # They cost nothing, and large logits rounded to bfloat16 are off by percents.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.value_head.output.weight.dtype)
            return PolicyOutputs(self.action_head(features, mask), self.value_head(features))


def _run_layer(run: Callable[..., Any], layer: Any, *inputs: Any) -> Any:  # noqa: ANN401
    """`Layer.forward`, compiled where gradients are wanted."""
    return (run if torch.is_grad_enabled() else Layer.forward)(layer, *inputs)


_Step = Callable[[Policy, PolicyInputs, DecodeCache, Tensor | None], Decision]
_Given = tuple[PolicyInputs, Tensor | None]


class _ReplayedStep:
    """A step that is replayed on the memories it keeps, one for each timeline.

    A graph holds the addresses of the memory that it changes. So a rollout that begins on the
    timeline of one before goes on in that one's memory.
    """

    def __init__(self, step: _Step, capture: Capture) -> None:
        self._step, self._capture = step, capture
        self._kept: list[tuple[DecodeCache, Replayed[_Given, Decision]]] = []

    def keep(self, policy: Policy, memory: DecodeCache) -> DecodeCache:
        """The memory to act with: what `memory` holds, on the tensors that the graph knows."""
        for kept, _ in self._kept:
            if kept.timeline.is_set_to(memory.timeline):
                theirs = memory.mutable_tensors()
                for name, tensor in kept.mutable_tensors().items():
                    tensor.copy_(theirs[name])
                return kept

        def step(given: _Given) -> Decision:
            with policy.autocast(keeps_casts=False):
                return self._step(policy, given[0], memory, given[1])

        self._kept.append((memory, Replayed(step, capture=self._capture)))
        return memory

    def __call__(
        self, policy: Policy, inputs: PolicyInputs, memory: DecodeCache, noise: Tensor | None
    ) -> Decision:
        """`step`, replayed where the memory was kept."""
        for kept, replayed in self._kept:
            if kept is memory:
                return replayed((inputs, noise))
        return self._step(policy, inputs, memory, noise)
