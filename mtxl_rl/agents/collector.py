"""Acting: a policy steps through vector environments and fills rollouts."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.agents.encoders import EPISODE_STEP
from mtxl_rl.agents.policy import Policy, PolicyInputs
from mtxl_rl.agents.rollout import Rollout, RolloutShape, Shapes
from mtxl_rl.torso import Cache, MemoryState
from mtxl_rl.tracking.metrics import EpisodeWindow

# B environments, T steps.


@runtime_checkable
class VectorEnv(Protocol):
    """What acting needs of `gymnasium.vector.VectorEnv`, with NEXT_STEP autoreset."""

    action_space: gymnasium.Space[Any]

    @property
    def num_envs(self) -> int:
        """Environments, B."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of ``options["reset_mask"]``."""
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        """One step of every environment."""
        ...


def observation_shapes(space: gymnasium.Space[Any], policy: Policy) -> Shapes:
    """Shape and tensor type of each leaf that the policy is shown, the action mask included."""
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"obs": space}
    found = {key: (leaf.shape or (), _tensor_type(leaf.dtype)) for key, leaf in leaves.items()}
    return found | {EPISODE_STEP: ((), torch.long)} if policy.config.episode_step else found


def _tensor_type(dtype: Any) -> torch.dtype:  # noqa: ANN401
    """uint8 and bool stay, other integers become int64 and floats float32."""
    if dtype in (np.uint8, np.int8, np.bool_):
        return torch.uint8 if dtype == np.uint8 else torch.int8
    return torch.float32 if np.issubdtype(dtype, np.floating) else torch.long


def to_tensors(
    leaves: Mapping[str, Any],
    shapes: Shapes,
    device: torch.device,
) -> dict[str, Tensor]:
    """A batch of observations' leaves as tensors on `device`, copied.

    To a GPU by way of pinned memory, so that the host goes on meanwhile.
    """
    copies = {key: torch.as_tensor(np.array(leaves[key])) for key in shapes}
    if device.type == "cuda":
        copies = {key: copy.pin_memory() for key, copy in copies.items()}
    return {
        key: copies[key].to(device, dtype, non_blocking=True) for key, (_, dtype) in shapes.items()
    }


class Outcome(NamedTuple):
    """What one step of the environments gave."""

    observation: Any
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    info: dict[str, Any]


class Stagger(NamedTuple):
    """Where episodes begin during random steps, so that they are not in step afterwards."""

    num_steps: int
    """Random steps of every environment."""
    starts: NDArray[np.int64]
    """[B] The step after which an environment begins its episode; 0: with the others."""

    @classmethod
    def over(cls, num_steps: int, num_envs: int) -> "Stagger":
        """Environment i begins between the i-th and the (i + 1)-th B-th of the steps."""
        # At random in between: episodes may be shorter than what they are spread over.
        shares = np.arange(num_envs) + np.random.default_rng(0).random(num_envs)
        return cls(num_steps, (shares * num_steps / num_envs).astype(np.int64))

    def play(self, env: VectorEnv, observation: Any) -> tuple[Any, NDArray[np.bool_]]:  # noqa: ANN401
        """Take the random steps after a reset; the observation then, and where episodes begin."""
        env.action_space.seed(0)  # Runs repeat; what differs among them is the environments.
        begins = np.ones(len(self.starts), dtype=np.bool_)
        for step in range(1, self.num_steps + 1):
            actions = env.action_space.sample()
            observation, _, terminated, truncated, _ = env.step(actions)
            begins = self.starts == step
            if step == self.num_steps:  # An episode that has just ended has no row to start at.
                begins |= terminated | truncated
            if begins.any():
                observation, _ = env.reset(options={"reset_mask": begins})
        return observation, begins


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
        self.episode_step = np.zeros(env.num_envs, dtype=np.int64)
        """The number of the observation in its episode: at its end the episode's length."""
        self.is_whole = np.ones(env.num_envs, dtype=bool)
        """Whether the episode was played from its start, so that its return counts."""
        self.ended: list[dict[str, float]] = []
        """Episodes that ended since the caller last cleared the list."""
        self.env_seconds = 0.0
        """Time inside the environments' `step` since the caller last cleared it."""

    def reset(self, *, seed: int | None, stagger: Stagger | None = None) -> None:
        """Start an episode in every environment, with an empty memory.

        Args:
            seed: the environments'; None where they have one already.
            stagger: random steps that come first; an episode that was begun in them is new to the
                memory, and its return is counted nowhere.
        """
        observation, _ = self.env.reset(seed=seed)
        self.is_whole[:] = True
        if stagger is not None:
            observation, self.is_whole = stagger.play(self.env, observation)
        batch, head = self.env.num_envs, self.policy.action_head
        self.episode_step[:] = 0
        self.observation = self._upload(observation)
        self.action = torch.zeros(
            batch, *head.action_shape, dtype=head.action_dtype, device=self.device
        )
        self.reward = torch.zeros(batch, device=self.device)
        self.is_first = torch.ones(batch, dtype=torch.bool, device=self.device)
        self.is_final = np.zeros(batch, dtype=bool)
        self.episode_return[:] = 0

    def inputs(self) -> PolicyInputs:
        """What the policy sees now."""
        return PolicyInputs(self.observation, self.action, self.reward, self.is_first)

    def step(self, action: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Act in the environments; `terminated` and `truncated` of the step."""
        outcome = self.play(self.policy.action_head.to_env(action))
        self.take(action, outcome)
        return outcome.terminated, outcome.truncated

    def play(self, to_env: NDArray[Any]) -> Outcome:
        """Step the environments and nothing else: a thread may do it while others act."""
        begun = time.perf_counter()
        outcome = Outcome(*self.env.step(to_env))
        self.env_seconds += time.perf_counter() - begun
        return outcome

    def take(self, action: Tensor, outcome: Outcome) -> None:
        """Move on to what `play` gave after `action`."""
        self.is_first = torch.as_tensor(self.is_final).to(self.device)
        self.episode_step = np.where(self.is_final, 0, self.episode_step + 1)
        ended = outcome.terminated | outcome.truncated
        self._count(np.asarray(outcome.reward, dtype=np.float64), ended, outcome.info)
        self.is_final = ended
        self.observation = self._upload(outcome.observation)
        self.action = action
        self.reward = torch.as_tensor(outcome.reward, dtype=torch.float32).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the environments and the memory."""
        return {
            "observation": self.observation,
            "action": self.action,
            "reward": self.reward,
            "is_first": self.is_first,
            "is_final": torch.as_tensor(self.is_final),
            "episode_step": torch.as_tensor(self.episode_step.copy()),
            "episode_return": torch.as_tensor(self.episode_return.copy()),
            "is_whole": torch.as_tensor(self.is_whole.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        device = self.device
        self.observation = {k: field.to(device) for k, field in state["observation"].items()}
        self.action, self.reward = state["action"].to(device), state["reward"].to(device)
        self.is_first = state["is_first"].to(device)
        self.is_final = state["is_final"].numpy().copy()
        # Older checkpoints have the length instead, which is the same but at an episode's end.
        steps = "episode_step" if "episode_step" in state else "episode_length"
        self.episode_step = state[steps].numpy().copy()
        self.episode_return = state["episode_return"].numpy().copy()
        if "is_whole" in state:  # Older checkpoints do not say.
            self.is_whole = state["is_whole"].numpy().copy()

    def _upload(self, observation: Any) -> dict[str, Tensor]:  # noqa: ANN401
        leaves = observation if isinstance(observation, Mapping) else {"obs": observation}
        if self.policy.config.episode_step:
            leaves = {**leaves, EPISODE_STEP: self.episode_step}
        return to_tensors(leaves, self.shapes, self.device)

    def _count(self, reward: NDArray[Any], ended: NDArray[np.bool_], info: dict[str, Any]) -> None:
        self.episode_return += reward
        for i in np.flatnonzero(ended & self.is_whole):
            episode = {
                "return": float(self.episode_return[i]),
                "length": float(self.episode_step[i]),
            }
            if "success" in info:
                episode["success"] = float(info["success"][i])
            self.ended.append(episode)
        self.episode_return[ended] = 0
        self.is_whole |= ended


@dataclass(kw_only=True)
class _Group:
    """Environments that step together, in a rollout under way."""

    actor: Actor
    rows: slice
    """Which of the rollout's they are."""
    memory: Cache
    action: Tensor
    """Of the step that is being taken."""
    outcome: Outcome | Future[Outcome] | None = None
    """What it gave, or will give."""


class Collector:
    """Fills one rollout after another, the memory going on from each to the next.

    With several actors, whose environments are the rollout's in their order, each one's
    environments step in a thread while the others act.
    """

    def __init__(
        self, actors: Sequence[Actor], *, shape: RolloutShape, generator: torch.Generator
    ) -> None:
        self.actors = list(actors)
        first = self.actors[0]
        self.policy: Policy = first.policy
        self.rollout = Rollout(shape, device=first.device)
        self.generator = generator
        self.episodes = EpisodeWindow(size=100)
        self.memory: MemoryState = self.policy.torso.initial_state(shape.num_envs)
        self._pool = ThreadPoolExecutor(len(actors) - 1) if len(actors) > 1 else None
        sizes = [actor.env.num_envs for actor in self.actors]
        assert sum(sizes) == shape.num_envs, (sizes, shape.num_envs)
        self._rows = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]

    def reset(self, *, seed: int | None, stagger_steps: int = 0) -> None:
        """Start over with new episodes and empty memories; see `Actor.reset`.

        `stagger_steps` spreads the environments over as many steps of their episodes, by random
        actions.
        """
        whole = Stagger.over(stagger_steps, self.rollout.shape.num_envs)
        for actor, rows in zip(self.actors, self._rows, strict=True):
            actor.reset(
                seed=None if seed is None else seed + rows.start,
                stagger=whole._replace(starts=whole.starts[rows]) if stagger_steps else None,
            )
        self.memory = self.policy.torso.initial_state(self.rollout.shape.num_envs)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, dict[str, float]]:
        """T steps of every environment, and where the time went in seconds.

        `time/env_seconds` is the environments' own; with several actors part of it passes while
        others act, so that the two times add up to more than has passed.
        """
        self.waited = 0.0
        begun = time.perf_counter()
        with self.policy.autocast():
            groups = self._begin()
            try:
                for t in range(self.rollout.shape.num_steps):
                    for group in groups:
                        if t:
                            self._finish(t - 1, group)
                        self._act(t, group)
                for group in groups:
                    self._finish(self.rollout.shape.num_steps - 1, group)
            finally:  # Whoever is told of an error may close the environments.
                wait([group.outcome for group in groups if isinstance(group.outcome, Future)])
        states = [group.memory.state() for group in groups]
        self.memory = MemoryState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
        self._bootstrap()
        env_seconds = 0.0
        for actor in self.actors:
            for episode in actor.ended:
                self.episodes.add(**{f"episode_{k}": v for k, v in episode.items()})
            actor.ended.clear()
            env_seconds += actor.env_seconds
            actor.env_seconds = 0.0
        acting = time.perf_counter() - begun - self.waited
        return self.rollout, {"time/env_seconds": env_seconds, "time/act_seconds": acting}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, apart from the environments."""
        return {
            "actor": _joined([actor.state_dict() for actor in self.actors]),
            "memory": dict(self.memory._asdict()),
            "generator": self.generator.get_state(),
            "episodes": self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for actor, rows in zip(self.actors, self._rows, strict=True):
            actor.load_state_dict(_rows_of(state["actor"], rows))
        self.memory = MemoryState(**state["memory"]).to(self.actors[0].device)
        self.generator.set_state(state["generator"].cpu())
        self.episodes.load_state_dict(state["episodes"])

    def _begin(self) -> list[_Group]:
        """The groups before their first step."""
        rollout = self.rollout
        groups = []
        for actor, rows in zip(self.actors, self._rows, strict=True):
            memory = self.policy.begin(self.memory.rows(rows), timeline=rollout.timeline[rows])
            rollout.action[rows, 0], rollout.reward[rows, 0] = actor.action, actor.reward
            groups.append(_Group(actor=actor, rows=rows, memory=memory, action=actor.action))
        return groups

    def _act(self, t: int, group: _Group) -> None:
        """Records what is seen and done at step t, and lets the environments begin it."""
        rollout, actor, rows = self.rollout, group.actor, group.rows
        memory = group.memory
        if t % rollout.shape.span_length == 0:
            rollout.snapshot(
                t,
                rows,
                long_term=memory.long_term,
                window_length=memory.window_length,
                segment_step=memory.segment_step,
            )
        inputs = actor.inputs()
        decision = self.policy.act(inputs, memory, self.generator)
        group.action = decision.action
        rollout.value[rows, t], rollout.log_prob[rows, t] = decision.value, decision.log_prob
        for key, field in inputs.observation.items():
            rollout.observation[key][rows, t] = field
        rollout.is_first[rows, t] = inputs.is_first
        rollout.valid[rows, t] = torch.as_tensor(~actor.is_final).to(actor.device)
        to_env = self.policy.action_head.to_env(decision.action)
        if self._pool is None:
            group.outcome = self._wait(lambda: actor.play(to_env))
        else:
            group.outcome = self._pool.submit(actor.play, to_env)

    def _finish(self, t: int, group: _Group) -> None:
        """Records what step t gave, when the environments have taken it."""
        rollout, actor, rows = self.rollout, group.actor, group.rows
        outcome = group.outcome
        if isinstance(outcome, Future):
            outcome = self._wait(outcome.result)
        assert outcome is not None  # step t was begun
        actor.take(group.action, outcome)
        rollout.action[rows, t + 1], rollout.reward[rows, t + 1] = group.action, actor.reward
        rollout.terminated[rows, t] = torch.as_tensor(outcome.terminated).to(actor.device)

    def _wait(self, outcome: Callable[[], Outcome]) -> Outcome:
        """What the environments give: the one place that waits for them."""
        begun = time.perf_counter()
        found = outcome()
        self.waited += time.perf_counter() - begun
        return found

    def _bootstrap(self) -> None:
        """V of the observation after the last step, without moving the memory on."""
        for actor, rows in zip(self.actors, self._rows, strict=True):
            inputs = actor.inputs()
            one = PolicyInputs(
                {key: field[:, None] for key, field in inputs.observation.items()},
                *(field[:, None] for field in inputs[1:]),
            )
            outputs, _ = self.policy(one, self.memory.rows(rows))
            self.rollout.bootstrap_value[rows] = outputs.value[:, 0]


def _rows_of(state: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """An actor's state of some of its environments."""
    return {
        key: _rows_of(field, rows) if isinstance(field, Mapping) else field[rows]
        for key, field in state.items()
    }


def _joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of several actors as that of one with all their environments."""
    return {
        key: _joined([state[key] for state in states])
        if isinstance(field, Mapping)
        else torch.cat([state[key] for state in states])
        for key, field in states[0].items()
    }
