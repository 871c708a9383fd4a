"""A trained agent in Python: load it from a file, act step by step, play episodes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.episodes import MEMORIES, play_episodes
from mtxl_rl.agents.transition import (
    EPISODE_STEP,
    Decision,
    PolicyInputs,
    to_tensors,
)
from mtxl_rl.agents.vector_env import VectorEnv
from mtxl_rl.envs.backends.custom_env import CustomEnv, CustomEnvConfig, default_num_envs
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.registry import evaluation_env, make_vector_env, stream_seed
from mtxl_rl.envs.space_json import space_line
from mtxl_rl.runtime.devices import find_device
from mtxl_rl.saved_agent import SavedAgent, read_agent
from mtxl_rl.torso import Cache

# B rows: episodes that are stepped together.

EVALUATION_SEED = 2**31
"""The second word of the key to an evaluation's seeds; training has its step there."""


@dataclass(slots=True)
class AgentCache:
    """The memory of the running episodes; each `Agent.act` changes it in place."""

    torso: Cache
    decision: Decision
    """The last step's action [B, ...], which the policy reads at the next step, its log-probability
    and the value estimate [B]."""
    episode_step: NDArray[np.int64]
    """Steps since each episode's first one [B]; -1: the next step is the first."""

    def rows(self, index: Sequence[int]) -> "AgentCache":
        """The cache of some episodes, copied: acting with it leaves the others unchanged."""
        rows = self._as_tensor(index)
        decision = Decision(*(part[rows] for part in self.decision))
        return AgentCache(self.torso.rows(rows), decision, self.episode_step[list(index)])

    def copy_rows_(self, index: Sequence[int], part: "AgentCache") -> None:
        """Copy `part`, made by `rows(index)` and acted with since, into these episodes.

        `index` names each episode once.
        """
        rows = self._as_tensor(index)
        self.torso.copy_rows_(rows, part.torso)
        for tensor, new in zip(self.decision, part.decision, strict=True):
            tensor[rows] = new
        self.episode_step[list(index)] = part.episode_step

    def _as_tensor(self, index: Sequence[int]) -> Tensor:
        return torch.tensor(list(index), dtype=torch.long, device=self.decision.action.device)


class Agent:
    """A trained policy.

    ```python
    agent = Agent.load("runs/first")
    action, cache = agent.act(observation)  # an episode's first step
    action, cache = agent.act(observation, cache, reward=reward)  # every later step
    episodes = agent.evaluate(episodes=100)
    ```

    Args:
        saved: what a file holds; `load` reads it.
        device: cpu, cuda, cuda:N, or auto: cuda if there is a GPU, else cpu.
        seed: of the actions that are drawn.
    """

    def __init__(self, saved: SavedAgent, *, device: str = "auto", seed: int = 0) -> None:
        self.device = find_device(device)
        self.config = saved.config
        self.step = saved.step
        """Environment steps of the training."""
        self.policy = saved.build_policy(self.device)
        self.observation_space = self.policy.observation_space
        """The observations that the agent acts on, without the leaves that only training needed."""
        self.action_space = saved.single_action_space
        self._shapes = self.policy.input_shapes()
        self._counts_steps = self.config.policy.episode_step
        space = self.observation_space
        self._spaces = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._has_warned = False

    @classmethod
    def load(
        cls, path: str | Path, *, which: str = "latest", device: str = "auto", seed: int = 0
    ) -> "Agent":
        """Load an agent from a run's folder, a checkpoint (.pt) or a policy.safetensors.

        Args:
            path: The folder or file. A file needs nothing else: it holds options and spaces.
            which: In a run's folder, the latest or best checkpoint.
            device: cpu, cuda, cuda:N, or auto: cuda if there is a GPU, else cpu.
            seed: Seed of the actions that are drawn.

        Raises:
            FileNotFoundError: there is no such file or folder, or no checkpoint in it.
            ValueError: the file is damaged, is not an agent, or has an option that is not legal.
        """
        return cls(read_agent(Path(path), which=which), device=device, seed=seed)

    def new_cache(self, batch: int) -> AgentCache:
        """The cache of `batch` episodes that are about to start."""
        log_prob, value = torch.zeros(2, batch, device=self.device)
        return AgentCache(
            # The shortest timeline, as a server keeps thousands of rows.
            self.policy.prefill(self.policy.torso.initial_state(batch), num_steps=1),
            Decision(self.policy.initial_action(batch), log_prob, value),
            np.full(batch, -1),
        )

    @torch.no_grad()
    def act(
        self,
        observation: Any,  # noqa: ANN401 - the observation space's
        cache: AgentCache | None = None,
        is_first: bool | NDArray[np.bool_] | None = None,
        *,
        reward: float | NDArray[Any] | None = None,
        greedy: bool = False,
    ) -> tuple[Any, AgentCache]:
        """Choose an action for one observation, or for a batch of B.

        Args:
            observation: As the environment returns it, or a batch of them.
            cache: From the last call; None starts B episodes.
            is_first: Whether the observation starts an episode, one flag or [B]. None: only
                where there is no cache.
            reward: Reward of the last action, one number or [B]; ignored at an episode's start.
            greedy: Take the most probable action, or the mean, instead of drawing one.

        Returns:
            The action, as the environment takes it, and the cache to pass to the next call. The
            cache is changed in place.

        Raises:
            ValueError: the observation, `is_first` or `reward` has the wrong shape, or the
                observation is not of numbers.
        """
        leaves, is_batch = self._batched(observation)
        batch = len(next(iter(leaves.values())))
        cache = self.new_cache(batch) if cache is None else cache
        if len(cache.episode_step) != batch:
            raise ValueError(
                f"the cache has {len(cache.episode_step)} episodes and the observation {batch}; "
                "pass cache=None to start new episodes"
            )
        starts = np.zeros(batch, dtype=np.bool_) if is_first is None else is_first
        starts = _row(starts, batch, name="is_first").astype(np.bool_) | (cache.episode_step < 0)
        cache.episode_step = np.where(starts, 0, cache.episode_step + 1)
        if reward is None and not starts.all():
            self._warn_without_reward()
        if self._counts_steps:
            leaves = {**leaves, EPISODE_STEP: cache.episode_step}
        rewards = _row(0.0 if reward is None else reward, batch, name="reward")
        inputs = PolicyInputs(
            to_tensors(leaves, self._shapes, self.device),
            cache.decision.action,
            torch.tensor(rewards, dtype=torch.float32, device=self.device),
            torch.tensor(starts, device=self.device),
        )
        head = self.policy.action_head
        noise = None if greedy else head.noise(batch, self._generator)
        cache.decision = self.policy.act(inputs, cache.torso, noise)
        action = head.to_env(cache.decision.action)
        return (action if is_batch else action[0]), cache

    def evaluate(
        self,
        env: CustomEnv | None = None,
        *,
        episodes: int = 100,
        num_envs: int | None = None,
        seed: int = 0,
        memory: str = "on",
        greedy: bool = False,
        on_step: Callable[[Actor], None] | None = None,
    ) -> list[dict[str, float]]:
        """Play new episodes.

        Args:
            env: A Gymnasium environment, a vector environment, or a function that makes an
                environment. None: the run's task, without a curriculum.
            episodes: Number of episodes.
            num_envs: Environments that are stepped together; None: as many as `env` has, else 16.
            seed: Seed of environments and actions. No training run has the same environments.
            memory: The long-term memory: on, zero (zeroed before every step) or noise (replaced by
                noise of the same scale).
            greedy: Take the most probable action instead of drawing one.
            on_step: Called with the `Actor` before each step and after the last one.

        Raises:
            ValueError: `memory` is unknown, `episodes` is below 1, or the environment does not fit
                the agent.

        Returns:
            For each episode "return", "length" and, where the environment reports it, "success".
        """
        check_choice("memory", memory, MEMORIES)
        if episodes < 1:
            raise ValueError(f"episodes={episodes} must be 1 or more")
        env_seed = stream_seed(seed, EVALUATION_SEED)
        task = evaluation_env(self.config.env)
        if env is not None:
            task = CustomEnvConfig()
            num_envs = num_envs or default_num_envs(env)
        vector = make_vector_env(task, num_envs=num_envs or 16, seed=env_seed, custom=env)
        with closing(vector):
            actor = self.actor(vector, seed=seed, greedy=greedy)
            torch.manual_seed(seed)  # memory="noise" draws from torch's generator.
            return play_episodes(
                actor, episodes=episodes, seed=env_seed, memory=memory, on_step=on_step
            )

    def actor(
        self, env: VectorEnv, *, seed: int = 0, greedy: bool = False, is_training: bool = False
    ) -> Actor:
        """The policy in the environments; `is_training` as in `Actor`.

        Raises:
            ValueError: the environments' spaces differ from the agent's.
        """
        _check_space("observation", env.single_observation_space, self.observation_space)
        _check_space("action", env.single_action_space, self.action_space)
        generator = None if greedy else torch.Generator(self.device).manual_seed(seed)
        return Actor(env, self.policy, generator=generator, is_training=is_training)

    def _batched(self, observation: Any) -> tuple[dict[str, NDArray[Any]], bool]:  # noqa: ANN401
        """The observation's leaves [B, ...], and whether it was a batch."""
        named = isinstance(self.observation_space, spaces.Dict)
        leaves = observation if named else {"obs": observation}
        if not isinstance(leaves, Mapping):
            raise ValueError(
                f"the observation is a {type(observation).__name__}; pass a dict with "
                f"{', '.join(self._shapes)}"
            )
        arrays, is_batch = dict[str, NDArray[Any]](), set[bool]()
        for key, (shape, _) in self._shapes.items():
            if key == EPISODE_STEP and self._counts_steps:
                continue
            if key not in leaves:
                raise ValueError(f"the observation has no {key!r}; it has {', '.join(leaves)}")
            array = np.asarray(leaves[key])
            name = f"the observation {key!r}" if named else "the observation"
            _check_array(array, shape, self._spaces[key], name=name)
            is_batch.add(array.shape != shape)
            arrays[key] = array if array.shape != shape else array[None]
        if len({(len(array)) for array in arrays.values()}) > 1 or len(is_batch) > 1:
            raise ValueError("the observation's parts have different numbers of rows")
        return arrays, is_batch.pop()

    def _warn_without_reward(self) -> None:
        if self.config.policy.previous_reward and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "this policy reads the last action's reward, and act() was called without reward=: "
                "it reads 0; pass reward=",
                stacklevel=3,
            )


def _row(value: Any, batch: int, *, name: str) -> NDArray[Any]:  # noqa: ANN401
    """One number for all rows, or one for each, as [B]."""
    array = np.asarray(value)
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name} has shape {list(array.shape)}; pass one value or [{batch}]")
    return np.broadcast_to(array, (batch,))


def _check_array(
    array: NDArray[Any], shape: tuple[int, ...], space: gymnasium.Space[Any], *, name: str
) -> None:
    """Check an observation's leaf, or a batch of them: numbers of the shape, or known choices."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has the type {array.dtype}; pass an array of numbers")
    if array.shape not in (shape, (*array.shape[:1], *shape)) or not array.size:
        raise ValueError(
            f"{name} has shape {list(array.shape)}; pass {list(shape)}, or [B, ...] of them"
        )
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        size = space.n if isinstance(space, spaces.Discrete) else space.nvec
        is_choice = (space.start <= array) & (array < space.start + size)
        if array.dtype.kind == "f" or not is_choice.all():
            raise ValueError(f"{name} has choices that are not in {space_line(space)}")


def _check_space(name: str, space: gymnasium.Space[Any], expected: gymnasium.Space[Any]) -> None:
    """Check that a space has the kind and sizes of the expected one.

    The bounds of a Box may differ, and a Dict may have more keys.
    """
    if isinstance(space, spaces.Dict) and isinstance(expected, spaces.Dict):
        space = spaces.Dict({key: leaf for key, leaf in space.items() if key in expected.spaces})
    if _kind(space) != _kind(expected):
        raise ValueError(
            f"the environment's {name} space is {space_line(space)}, and this agent was trained "
            f"with {space_line(expected)}; evaluate it in an environment with the same spaces"
        )


def _kind(space: gymnasium.Space[Any]) -> Any:  # noqa: ANN401 - nested tuples
    if isinstance(space, spaces.Dict):
        return {key: _kind(leaf) for key, leaf in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return ("Box", space.shape, space.dtype)
    return space
