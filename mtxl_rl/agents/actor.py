"""Acting: a policy steps vector environments."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.stagger import Stagger
from mtxl_rl.agents.teacher import Teacher, led_environments
from mtxl_rl.agents.transition import (
    EPISODE_STEP,
    Lead,
    PolicyInputs,
    TeacherStep,
    Transition,
    to_tensors,
)
from mtxl_rl.agents.vector_env import VectorEnv
from mtxl_rl.agents.world import World
from mtxl_rl.env_keys import STATISTICS_KEY, TRAINING_REWARD_KEY
from mtxl_rl.torso import Cache, MemoryState

# B environments.


class Episode(NamedTuple):
    """Statistics of an episode that ended."""

    env: int
    """Index of its environment among those of all processes."""
    episode_return: float
    length: int
    success: float | None
    """1 or 0; None where the environment does not report it."""
    is_practice: bool = False
    """Whether it was easier than the task, for a curriculum."""
    is_led: bool = False
    """Whether a teacher took some of its actions."""

    def statistics(self) -> dict[str, float]:
        """Return, length and, where it is known, success."""
        statistics = {"return": self.episode_return, "length": float(self.length)}
        return statistics if self.success is None else statistics | {"success": self.success}


def ended_episodes(info: Mapping[str, Any]) -> list[Episode]:
    """Episodes that ended in a step, from the statistics in its info, by the environment's row."""
    if STATISTICS_KEY not in info:
        return []
    statistics = info[STATISTICS_KEY]
    return [
        Episode(
            env=int(row),
            episode_return=float(statistics["r"][row]),
            length=int(statistics["l"][row]),
            success=float(info["success"][row]) if "success" in info else None,
            is_practice=bool(info["is_practice"][row]) if "is_practice" in info else False,
        )
        for row in np.flatnonzero(info[f"_{STATISTICS_KEY}"])
    ]


class Actor:
    """A policy in a vector environment: the one loop of training, evaluation and export.

    Under NEXT_STEP autoreset the row after an episode's end, the reset row, shows the final
    observation and its action is ignored; the row after that one starts the next episode.

    Args:
        env: the environments of this process.
        policy: acts in them.
        generator: draws the actions; None takes the most probable action, or the mean.
        world: the processes of the run. Every process draws the noise of all environments and uses
            that of its own, so the actions do not depend on the number of processes.
        teacher: acts in the environments that it leads, and is compared with everywhere.
        is_training: whether the policy also receives what only training needs (the leaves of
            `critic.observations` and `auxiliary.predict`).
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        *,
        generator: torch.Generator | None,
        world: World | None = None,
        teacher: Teacher | None = None,
        is_training: bool = False,
    ) -> None:
        self.env = env
        self.policy = policy
        self.generator = generator
        self.world = world or World()
        self.teacher = teacher
        self.is_led = np.zeros(env.num_envs, dtype=bool)
        """Which environments the teacher leads; see `lead`."""
        self.shapes = policy.input_shapes(is_training=is_training)
        """The leaves that the policy receives."""
        self._shapes = self.shapes if teacher is None else {**self.shapes, **teacher.shapes}
        self.device = next(policy.parameters()).device
        self.cache: Cache | None = None
        self.episode_step = np.zeros(env.num_envs, dtype=np.int64)
        """The observation's number in its episode; at its end the episode's length."""
        self.is_counted = np.ones(env.num_envs, dtype=bool)
        """Whether the current episode is counted: not if it began while staggering."""
        self.was_led = np.zeros(env.num_envs, dtype=bool)
        """Whether the teacher took an action in the current episode."""
        self.env_seconds = 0.0
        """Time spent in the environments' `step` since the caller last cleared it."""

    def reset(self, *, seed: int | None, stagger: Stagger | None = None) -> None:
        """Start an episode in every environment, with an empty memory.

        Args:
            seed: the environments' seed; None keeps the one they have.
            stagger: random steps that come first; an episode that began in them is counted in no
                statistics.
        """
        observation, info = self.env.reset(seed=seed)
        self.is_counted[:] = True
        self.was_led[:] = False
        if stagger is not None:
            observation, info, self.is_counted = stagger.run(self.env, observation, info)
        if self.teacher is not None:
            self.teacher.reset(self.env.num_envs)
            self.teacher.observe(info)
        batch = self.env.num_envs
        self.episode_step[:] = 0
        self.observation = self._to_tensors(observation)
        self.action = self.policy.initial_action(batch)
        self.reward = torch.zeros(batch, device=self.device)
        self.is_first = torch.ones(batch, dtype=torch.bool, device=self.device)
        self.is_reset_row = np.zeros(batch, dtype=bool)
        self.cache = None

    def prefill(self, state: MemoryState, *, timeline: Tensor | None = None) -> Cache:
        """Act from `state` from now on; see `MemoryTransformer.prefill`.

        A cache of the same timeline is filled in place: its addresses stay, as CUDA graphs need.
        """
        cache = self.policy.prefill(state, timeline=timeline)
        if self.cache is None or timeline is None:
            self.cache = cache
        else:
            self.cache.copy_(cache)
        return self.cache

    def lead(self, *, share: float) -> None:
        """Let the teacher lead a share of the run's environments from now on."""
        num_envs = self.env.num_envs
        rows = self.world.rows(num_envs)
        self.is_led = led_environments(num_envs * self.world.size, share)[rows]

    def inputs(self) -> PolicyInputs:
        """The policy's inputs at the current step."""
        return PolicyInputs(self.observation, self.action, self.reward, self.is_first)

    def step(self) -> tuple[Transition, list[Episode]]:
        """Act once in every environment.

        Returns:
            The step, and statistics of the episodes that ended in it.
        """
        if self.cache is None:
            self.prefill(self.policy.torso.initial_state(self.env.num_envs))
        assert self.cache is not None
        inputs, is_reset_row = self.inputs(), self.is_reset_row
        with record_function("act"):
            teacher, lead = self._teach(inputs)
            decision = self.policy.act(inputs, self.cache, self._noise(), lead)
            env_action = self.policy.action_head.to_env(decision.action)
        terminated, training_reward, episodes = self._env_step(env_action)
        self.action = decision.action
        return (
            Transition(
                inputs=inputs,
                decision=decision,
                is_reset_row=self._to_device(is_reset_row),
                reward=self.reward,
                training_reward=training_reward,
                terminated=self._to_device(terminated),
                teacher=teacher,
            ),
            episodes,
        )

    def _teach(self, inputs: PolicyInputs) -> tuple[TeacherStep | None, Lead | None]:
        """The teacher's targets, and the actions that it takes."""
        if self.teacher is None:
            return None, None
        self.was_led |= self.is_led & ~self.is_reset_row
        parameters, led = self.teacher.act(inputs), self._to_device(self.is_led)
        action = self.policy.action_head.sample(parameters, None)
        return TeacherStep(parameters, led), Lead(action, led)

    def _env_step(
        self, env_action: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], Tensor, list[Episode]]:
        """Step the environments.

        Returns:
            `terminated`, the reward to learn from, and the episodes that ended.
        """
        begin = time.perf_counter()
        with record_function("environment"):
            observation, reward, terminated, truncated, info = self.env.step(env_action)
        self.env_seconds += time.perf_counter() - begin
        self.is_first = self._to_device(self.is_reset_row)
        self.episode_step = np.where(self.is_reset_row, 0, self.episode_step + 1)
        self.is_reset_row = terminated | truncated
        episodes = self._ended_episodes(info)
        if self.teacher is not None:
            self.teacher.observe(info)
        self.observation = self._to_tensors(observation)
        self.reward = torch.as_tensor(reward, dtype=torch.float32).to(self.device)
        training_reward = self.reward
        if TRAINING_REWARD_KEY in info:
            is_reported = info[f"_{TRAINING_REWARD_KEY}"]
            reward = np.where(is_reported, info[TRAINING_REWARD_KEY], reward)
            training_reward = torch.as_tensor(reward, dtype=torch.float32).to(self.device)
        return terminated, training_reward, episodes

    def _ended_episodes(self, info: Mapping[str, Any]) -> list[Episode]:
        """Episodes that ended in this step, from the statistics in the environment's info."""
        first = self.world.rows(self.env.num_envs).start
        episodes = [
            episode._replace(env=first + episode.env, is_led=bool(self.was_led[episode.env]))
            for episode in ended_episodes(info)
            if self.is_counted[episode.env]
        ]
        if STATISTICS_KEY in info:
            self.is_counted |= info[f"_{STATISTICS_KEY}"]
            self.was_led &= ~info[f"_{STATISTICS_KEY}"]
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the environments and the memory."""
        return {
            "observation": dict(self.observation),
            "action": self.action,
            "reward": self.reward,
            "is_first": self.is_first,
            "is_reset_row": torch.as_tensor(self.is_reset_row),
            "episode_step": torch.as_tensor(self.episode_step),
            "is_counted": torch.as_tensor(self.is_counted.copy()),
            "was_led": torch.as_tensor(self.was_led.copy()),
            "teacher": {} if self.teacher is None else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        device = self.device
        self.observation = {key: leaf.to(device) for key, leaf in state["observation"].items()}
        self.action, self.reward = state["action"].to(device), state["reward"].to(device)
        self.is_first = state["is_first"].to(device)
        self.is_reset_row = state["is_reset_row"].numpy().copy()
        self.episode_step = state["episode_step"].numpy().copy()
        self.is_counted = state["is_counted"].numpy().copy()
        self.was_led = state["was_led"].numpy().copy()
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])

    def _noise(self) -> Tensor | None:
        if self.generator is None:
            return None
        num_envs = self.env.num_envs
        noise = self.policy.action_head.noise(num_envs * self.world.size, self.generator)
        return noise[self.world.rows(num_envs)]

    def _to_device(self, flags: NDArray[np.bool_]) -> Tensor:
        return torch.as_tensor(flags).to(self.device)

    def _to_tensors(self, observation: Any) -> dict[str, Tensor]:  # noqa: ANN401
        leaves = observation if isinstance(observation, Mapping) else {"obs": observation}
        if EPISODE_STEP in self._shapes and EPISODE_STEP not in leaves:
            leaves = {**leaves, EPISODE_STEP: self.episode_step}
        return to_tensors(leaves, self._shapes, self.device)
