"""The collector fills rollouts with the steps of an actor."""

from typing import Any

import torch

from mtxl_rl.agents.actor import Actor, Episode
from mtxl_rl.agents.rollout import Rollout, RolloutShape
from mtxl_rl.agents.stagger import Stagger
from mtxl_rl.torso import MemoryState

# B environments, T steps.


class Collector:
    """Fills one rollout after another; each starts with the memory at the end of the last."""

    def __init__(self, actor: Actor, *, shape: RolloutShape) -> None:
        self.actor = actor
        self.rollout = Rollout(shape, device=actor.device)
        self.memory: MemoryState = actor.policy.torso.initial_state(shape.num_envs)

    def reset(self, *, seed: int | None, stagger_steps: int = 0) -> None:
        """Start new episodes with empty memories; see `Actor.reset`.

        Args:
            seed: the environments' seed; None keeps the one they have.
            stagger_steps: random steps that spread the environments over their episodes.
        """
        world, num_envs = self.actor.world, self.rollout.shape.num_envs
        stagger = None
        if stagger_steps:
            rows = world.rows(num_envs)
            stagger = Stagger.over(stagger_steps, num_envs * world.size, rows=rows)
        self.actor.reset(seed=seed, stagger=stagger)
        self.memory = self.actor.policy.torso.initial_state(num_envs)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, list[Episode]]:
        """T steps of every environment, and the episodes that ended in them."""
        rollout, actor, policy = self.rollout, self.actor, self.actor.policy
        episodes: list[Episode] = []
        with policy.autocast():
            cache = actor.prefill(self.memory, timeline=rollout.timeline)
            if actor.teacher is not None:
                actor.teacher.begin_rollout()
            for t in range(rollout.shape.num_steps):
                if rollout.starts_span(t):
                    rollout.snapshot(t, cache)
                transition, ended = actor.step()
                rollout.record(t, transition)
                episodes += ended
        self.memory = cache.state()
        # V of the observation after the last step; the memory stays before that step.
        outputs, _ = policy(actor.inputs().unsqueeze_time(), self.memory)
        rollout.bootstrap_value.copy_(outputs.value[:, 0])
        return rollout, episodes

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs, without the environments; all leaves are [B, ...]."""
        return {"actor": self.actor.state_dict(), "memory": dict(self.memory._asdict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.actor.load_state_dict(state["actor"])
        self.memory = MemoryState(**state["memory"]).to(self.actor.device)
