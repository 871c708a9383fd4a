"""Teachers: policies that a student imitates while it trains.

A teacher acts on what the student's environments show, or report in their info. In a share of the
environments its actions are taken (Ross et al. 2011, arXiv 1011.0686); everywhere the student's
distribution is compared with the teacher's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mtxl_rl.agents.heads import CategoricalHead, GaussianHead
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.transition import PolicyInputs, Shapes
from mtxl_rl.env_keys import ACTION_MASK_KEY, TEACHER_KEY
from mtxl_rl.torso import MemoryState
from mtxl_rl.torso.torso_config import check_at_least, check_choice

# B environments, n parameters of an action distribution.

OWN_TEACHER = "env"
"""`teacher.policy` of an environment that reports `TEACHER_KEY`."""

LOSSES = ("cross_entropy", "kl", "reverse_kl", "mse")
_GOLDEN = 0.6180339887498949


@dataclass(kw_only=True, slots=True)
class TeacherConfig:
    """A teacher that the policy imitates."""

    policy: str = ""
    """An agent's folder or file, or a teacher of the environment's own: explorer or oracle in
    Memory Maze, env where an environment reports teacher_logits. Empty: no teacher."""
    loss: str = "kl"
    """kl (teacher || student), reverse_kl (student || teacher), cross_entropy (the teacher's most
    probable action), or mse (of probabilities, or of continuous actions' means)."""
    temperature: float = 1.0
    """Temperature of the teacher's distribution in kl, reverse_kl and mse; below 1 is sharper."""
    coef: float = 1.0
    """Weight of the loss at the start."""
    final_coef: float = 0.0
    """Weight after teacher.steps; linear in between."""
    beta: float = 0.5
    """Share of the environments in which the teacher's actions are taken, at the start. The losses
    of PPO leave them out."""
    final_beta: float = 0.0
    """Share after teacher.steps; linear in between."""
    steps: int = 0
    """Environment steps after which the final values hold, also ppo.final_coef; 0: total_steps."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_at_least(self, 0, "coef", "final_coef", "steps", prefix="teacher.")
        for name in ("beta", "final_beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"teacher.{name}={getattr(self, name)} must be in 0 .. 1")
        if not self.temperature > 0:
            raise ValueError(f"teacher.temperature={self.temperature} must be above 0")
        check_choice("teacher.loss", self.loss, LOSSES)

    def progress(self, step: int, *, total_steps: int) -> float:
        """Progress of the schedules at a step, 0 .. 1."""
        return min(step / (self.steps or total_steps), 1.0)

    def coef_at(self, progress: float) -> float:
        """Weight of the loss."""
        return self.coef + (self.final_coef - self.coef) * progress

    def beta_at(self, progress: float) -> float:
        """Share of the environments that the teacher leads."""
        return self.beta + (self.final_beta - self.beta) * progress


def led_environments(num_envs: int, share: float) -> NDArray[np.bool_]:
    """A mask of the environments that are led: a share of them, spread evenly over the indices.

    A smaller share is a part of a larger one.
    """
    order: NDArray[np.int64] = (np.arange(num_envs) * _GOLDEN % 1).argsort()
    is_led = np.zeros(num_envs, np.bool_)
    is_led[order[: round(share * num_envs)]] = True
    return is_led


@runtime_checkable
class Teacher(Protocol):
    """A teacher in the environments of one process."""

    shapes: Shapes
    """The observation's leaves that it receives."""

    def reset(self, num_envs: int) -> None:
        """Start an episode in every environment."""
        ...

    def observe(self, info: Mapping[str, Any]) -> None:
        """Receive the info of a reset or a step."""
        ...

    def act(self, inputs: PolicyInputs) -> Float[Tensor, "B n"]:
        """The parameters of its action distribution at the current step."""
        ...

    def begin_rollout(self) -> None:
        """Compute from now on what a resumed run would compute, to the bit."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State that an exact resume needs; all leaves are [B, ...]."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        ...


class EnvTeacher:
    """The environments' own teacher, which reports logits of discrete actions in their info."""

    def __init__(self, head: CategoricalHead | GaussianHead, *, device: torch.device) -> None:
        self.shapes: Shapes = {}
        if not isinstance(head, CategoricalHead):
            raise ValueError(
                "an environment's own teacher needs discrete actions; pass an agent's folder or "
                "file as teacher.policy="
            )
        self._head, self._device = head, device
        self._logits = torch.zeros(0, device=device)

    def reset(self, num_envs: int) -> None:
        """Start an episode in every environment."""
        self._logits = torch.zeros(num_envs, self._head.encoded_width, device=self._device)

    def observe(self, info: Mapping[str, Any]) -> None:
        """Receive the logits."""
        shape = tuple(self._logits.shape)
        reported = np.asarray(info.get(TEACHER_KEY, ()), np.float32)
        if reported.shape != shape:
            raise ValueError(
                f"info[{TEACHER_KEY!r}] has shape {list(reported.shape)}; an environment with a "
                f"teacher reports logits {list(shape)} at every step and reset"
            )
        logits = torch.as_tensor(reported)
        is_reported = torch.as_tensor(info.get(f"_{TEACHER_KEY}", np.ones(shape[:1], np.bool_)))
        self._logits = torch.where(
            is_reported[:, None].to(self._device), logits.to(self._device), self._logits
        )

    def act(self, inputs: PolicyInputs) -> Float[Tensor, "B n"]:
        """Log-probabilities of the actions."""
        return self._head.normalise(self._logits, inputs.observation.get(ACTION_MASK_KEY))

    def begin_rollout(self) -> None:
        """Nothing: it has no memory of its own."""

    def state_dict(self) -> dict[str, Any]:
        """The current logits."""
        return {"logits": self._logits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._logits = state["logits"].to(self._device)


class PolicyTeacher:
    """A trained policy, with its own memory and its own leaves of the observation."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.eval()
        self.shapes = policy.input_shapes()

    def reset(self, num_envs: int) -> None:
        """Start an episode in every environment, with an empty memory."""
        self._cache = self.policy.prefill(self.policy.torso.initial_state(num_envs))

    def observe(self, info: Mapping[str, Any]) -> None:
        """Nothing: it receives observations."""

    @torch.no_grad()
    def act(self, inputs: PolicyInputs) -> Float[Tensor, "B n"]:
        """The parameters at the current step, which enters its memory."""
        with self.policy.autocast():
            return self.policy.step_outputs(inputs, self._cache).action_parameters

    def begin_rollout(self) -> None:
        """Act from the state that a checkpoint holds."""
        self._cache = self.policy.prefill(self._cache.state())

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return dict(self._cache.state()._asdict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        device = next(self.policy.parameters()).device
        memory = MemoryState(**{key: field.to(device) for key, field in state.items()})
        self._cache = self.policy.prefill(memory)


def imitation_loss(
    head: CategoricalHead | GaussianHead,
    student: Float[Tensor, "I L n"],
    teacher: Float[Tensor, "I L n"],
    config: TeacherConfig,
) -> Float[Tensor, "I L"]:
    """The distance of the student's distribution from the teacher's; see `TeacherConfig.loss`."""
    if config.loss == "cross_entropy":
        return -head.log_prob(student, head.sample(teacher, None))
    teacher = head.temper(teacher, config.temperature)
    if config.loss == "kl":
        return head.kl(teacher, student)
    if config.loss == "reverse_kl":
        return head.kl(student, teacher)
    return head.squared_error(teacher, student)


def teacher_metrics(
    head: CategoricalHead | GaussianHead, student: Tensor, teacher: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    """Share of steps whose most probable actions agree, and the KL to the teacher."""
    agrees = (head.sample(student, None) == head.sample(teacher, None)).all(-1)
    return {
        "teacher/agreement": (weight * agrees).sum(),
        "teacher/kl": (weight * head.kl(teacher, student)).sum(),
    }
