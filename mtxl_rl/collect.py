"""Acting: a policy steps through vector environments and fills rollouts."""

import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.metrics import EpisodeWindow
from mtxl_rl.policy import Policy, PolicyInputs
from mtxl_rl.rollout import Rollout, RolloutShape
from mtxl_rl.torso import ActingMemory, MemoryState

# B environments, T steps.


@runtime_checkable
class VectorEnv(Protocol):
    """What acting needs of `gymnasium.vector.VectorEnv`, with NEXT_STEP autoreset."""

    num_envs: int
    action_space: gymnasium.Space[Any]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of ``options["reset_mask"]``."""
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """One step of every environment."""
        ...


def observation_shapes(
    space: gymnasium.Space[Any],
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and tensor type of each leaf of an observation space, the action mask included."""
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"obs": space}
    return {key: (leaf.shape or (), _tensor_type(leaf.dtype)) for key, leaf in leaves.items()}


def _tensor_type(dtype: Any) -> torch.dtype:  # noqa: ANN401
    """uint8 and bool stay, other integers become int64 and floats float32."""
    if dtype in (np.uint8, np.int8, np.bool_):
        return torch.uint8 if dtype == np.uint8 else torch.int8
    return torch.float32 if np.issubdtype(dtype, np.floating) else torch.long


def to_tensors(
    observation: Any,  # noqa: ANN401
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    device: torch.device,
) -> dict[str, Tensor]:
    """A batch of observations as tensors on `device`, copied."""
    leaves = observation if isinstance(observation, Mapping) else {"obs": observation}
    return {
        key: torch.as_tensor(np.array(leaves[key])).to(device, dtype, non_blocking=True)
        for key, (_, dtype) in shapes.items()
    }


class Actor:
    """A policy in vector environments: it carries the memory and the episodes' clocks.

    Under NEXT_STEP autoreset the row after an end shows the final observation and its action is
    ignored; the row after that one starts the next episode.
    """

    def __init__(self, env: VectorEnv, policy: Policy, *, shapes: Mapping[str, Any]) -> None:
        self.env = env
        self.policy = policy
        self.shapes = dict(shapes)
        self.device = next(policy.parameters()).device
        self.episode_return = np.zeros(env.num_envs)
        self.episode_length = np.zeros(env.num_envs, dtype=np.int64)
        self.ended: list[dict[str, float]] = []
        """Episodes that ended since the caller last cleared the list."""
        self.env_seconds = 0.0
        """Time inside the environments' `step` since the caller last cleared it."""

    def reset(self, *, seed: int | None, stagger_steps: int = 0) -> None:
        """Start an episode in every environment, with an empty memory.

        Args:
            seed: the environments'; None where they have one already.
            stagger_steps: spread the environments over as many steps of their episodes, by random
                actions; an episode that was begun so is new to the memory.
        """
        observation, _ = self.env.reset(seed=seed)
        if stagger_steps:
            observation = self._stagger(observation, stagger_steps)
        batch, head = self.env.num_envs, self.policy.action_head
        self.observation = self._upload(observation)
        self.action = torch.zeros(
            batch, *head.action_shape, dtype=head.action_dtype, device=self.device
        )
        self.reward = torch.zeros(batch, device=self.device)
        self.is_first = torch.ones(batch, dtype=torch.bool, device=self.device)
        self.is_final = np.zeros(batch, dtype=bool)
        self.episode_return[:] = 0
        self.episode_length[:] = 0

    def _stagger(self, observation: Any, num_steps: int) -> Any:  # noqa: ANN401
        """The observations after random steps; environment i starts between i and i + 1 B-ths."""
        num_envs = self.env.num_envs
        # At random in between: episodes may be shorter than what they are spread over.
        shares = np.arange(num_envs) + np.random.default_rng(0).random(num_envs)
        starts = (shares * num_steps / num_envs).astype(np.int64)
        self.env.action_space.seed(0)  # Runs repeat; what differs among them is the environments.
        for step in range(1, num_steps + 1):
            actions = self.env.action_space.sample()
            observation, _, terminated, truncated, _ = self.env.step(actions)
            begins = starts == step
            if step == num_steps:  # An episode that has just ended has no row to start from.
                begins |= terminated | truncated
            if begins.any():
                observation, _ = self.env.reset(options={"reset_mask": begins})
        return observation

    def inputs(self) -> PolicyInputs:
        """What the policy sees now."""
        return PolicyInputs(self.observation, self.action, self.reward, self.is_first)

    def step(self, action: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Act in the environments; `terminated` and `truncated` of the step."""
        to_env = self.policy.action_head.to_env(action)
        begun = time.perf_counter()
        observation, reward, terminated, truncated, info = self.env.step(to_env)
        self.env_seconds += time.perf_counter() - begun
        self.is_first = torch.as_tensor(self.is_final).to(self.device)
        self._count(np.asarray(reward, dtype=np.float64), terminated | truncated, info)
        self.is_final = terminated | truncated
        self.observation = self._upload(observation)
        self.action = action
        self.reward = torch.as_tensor(reward, dtype=torch.float32).to(self.device)
        return terminated, truncated

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the environments and the memory."""
        return {
            "observation": self.observation,
            "action": self.action,
            "reward": self.reward,
            "is_first": self.is_first,
            "is_final": torch.as_tensor(self.is_final),
            "episode_return": torch.as_tensor(self.episode_return.copy()),
            "episode_length": torch.as_tensor(self.episode_length.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        device = self.device
        self.observation = {k: field.to(device) for k, field in state["observation"].items()}
        self.action, self.reward = state["action"].to(device), state["reward"].to(device)
        self.is_first = state["is_first"].to(device)
        self.is_final = state["is_final"].numpy().copy()
        self.episode_return = state["episode_return"].numpy().copy()
        self.episode_length = state["episode_length"].numpy().copy()

    def _upload(self, observation: Any) -> dict[str, Tensor]:  # noqa: ANN401
        return to_tensors(observation, self.shapes, self.device)

    def _count(self, reward: NDArray[Any], ended: NDArray[np.bool_], info: dict[str, Any]) -> None:
        self.episode_return += reward
        self.episode_length += ~self.is_final
        for i in np.flatnonzero(ended):
            episode = {
                "return": float(self.episode_return[i]),
                "length": float(self.episode_length[i]),
            }
            if "success" in info:
                episode["success"] = float(info["success"][i])
            self.ended.append(episode)
        self.episode_return[ended] = 0
        self.episode_length[ended] = 0


class Collector:
    """Fills one rollout after another, the memory going on from each to the next."""

    def __init__(self, actor: Actor, *, shape: RolloutShape, generator: torch.Generator) -> None:
        self.actor = actor
        self.rollout = Rollout(shape, device=actor.device)
        self.generator = generator
        self.episodes = EpisodeWindow(size=100)
        self.memory: MemoryState = actor.policy.torso.initial_state(shape.num_envs)

    def reset(self, *, seed: int | None, stagger_steps: int = 0) -> None:
        """Start over with new episodes and empty memories; see `Actor.reset`."""
        self.actor.reset(seed=seed, stagger_steps=stagger_steps)
        self.memory = self.actor.policy.torso.initial_state(self.rollout.shape.num_envs)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, dict[str, float]]:
        """T steps of every environment, and where the time went in seconds."""
        rollout, actor, policy = self.rollout, self.actor, self.actor.policy
        memory = policy.begin(self.memory, timeline=rollout.timeline)
        rollout.action[:, 0], rollout.reward[:, 0] = actor.action, actor.reward
        actor.env_seconds, begun = 0.0, time.perf_counter()
        with policy.autocast():
            for t in range(rollout.shape.num_steps):
                self._step(t, memory)
        self.memory = memory.state()
        self._bootstrap()
        for episode in actor.ended:
            self.episodes.add(**{f"episode_{k}": v for k, v in episode.items()})
        actor.ended.clear()
        acting = time.perf_counter() - begun - actor.env_seconds
        return rollout, {"time/env_seconds": actor.env_seconds, "time/act_seconds": acting}

    def _step(self, t: int, memory: ActingMemory) -> None:
        """Records and takes step t."""
        rollout, actor, policy = self.rollout, self.actor, self.actor.policy
        if t % rollout.shape.span_length == 0:
            rollout.snapshot(
                t,
                long_term=memory.long_term.transpose(0, 1),
                window_length=memory.window_length,
                segment_step=memory.segment_step,
            )
        inputs = actor.inputs()
        outputs = policy.act(inputs, memory)
        action = policy.action_head.sample(outputs.action_parameters, self.generator)
        rollout.value[:, t] = outputs.value
        rollout.log_prob[:, t] = policy.action_head.log_prob(outputs.action_parameters, action)
        for key, field in inputs.observation.items():
            rollout.observation[key][:, t] = field
        rollout.is_first[:, t] = inputs.is_first
        rollout.valid[:, t] = torch.as_tensor(~actor.is_final).to(actor.device)
        terminated, _ = actor.step(action)
        rollout.action[:, t + 1], rollout.reward[:, t + 1] = action, actor.reward
        rollout.terminated[:, t] = torch.as_tensor(terminated).to(actor.device)

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, apart from the environments."""
        return {
            "actor": self.actor.state_dict(),
            "memory": dict(self.memory._asdict()),
            "generator": self.generator.get_state(),
            "episodes": self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.actor.load_state_dict(state["actor"])
        self.memory = MemoryState(**state["memory"]).to(self.actor.device)
        self.generator.set_state(state["generator"].cpu())
        self.episodes.load_state_dict(state["episodes"])

    def _bootstrap(self) -> None:
        """V of the observation after the last step, without moving the memory on."""
        inputs = self.actor.inputs()
        one = PolicyInputs(
            {key: field[:, None] for key, field in inputs.observation.items()},
            *(field[:, None] for field in inputs[1:]),
        )
        outputs, _ = self.actor.policy(one, self.memory)
        self.rollout.bootstrap_value[:] = outputs.value[:, 0]
