"""A passive T-maze: a pure test of memory, thousands of corridors at a time in NumPy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mtxl_rl.envs.checked import EnvState, reset_mask


@dataclass(kw_only=True, slots=True)
class TMazeConfig:
    """What ``env=TMaze`` takes."""

    name: str = "TMaze"
    """The environment's name in the registry."""
    corridor_length: int = 100
    """Steps from the cue to the junction, at least 1: how long the cue must be remembered."""

    def __post_init__(self) -> None:
        _check_corridor_length(self.corridor_length)


class TMaze(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """Remember for `corridor_length` steps on which side the cue was, then turn to that side.

    An episode is `corridor_length` + 1 decisions. The observation is [cue is left, cue is right, at
    the junction]:

    =================== ==================== ===================================
    decision            observation          what the action does
    =================== ==================== ===================================
    0                   the cue, one-hot     nothing
    1 .. L - 1          zeros                nothing
    L = corridor_length [0, 0, 1]            0 is left, 1 is right: reward 1 if
                                             that is the cue's side, else -1; end
    =================== ==================== ===================================

    The final observation is zeros. Nothing tells the position, so a longer corridor shows a trained
    agent nothing new.

    The agent is carried forward whatever it does. A maze in which it must walk also asks it to
    explore, and a failure would not tell whether it could not find the junction or could not
    remember the cue. The task is that of Bakker (2001), "Reinforcement Learning with Long
    Short-Term Memory". Ni et al. (2023), https://arxiv.org/abs/2307.03864, also start
    their passive T-maze at the cue, to test memory apart from credit assignment; there it walks.

    All environments draw from one generator, seeded with ``SeedSequence(seed)``: each time an
    episode starts anywhere, a cue is drawn for every environment, and environment i takes the i-th
    if it starts. So cues repeat with the seed, the number of environments and the order of calls.
    All corridors have one length, so the environments stay in step.

    Args:
        num_envs: Number of environments, at least 1.
        corridor_length: Steps from the cue to the junction, at least 1.
        seed: Seed of the cues; ``reset(seed=...)`` replaces it.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int, *, corridor_length: int = 100, seed: int | Sequence[int] = 0
    ) -> None:
        _check_corridor_length(corridor_length)
        self.num_envs = num_envs
        self.corridor_length = corridor_length
        self.single_observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.np_random = self._generator(seed)
        self._cue = np.zeros(num_envs, dtype=np.int8)
        # The decision that comes next; corridor_length + 1 where the episode is over.
        self._decision = np.full(num_envs, corridor_length + 1, dtype=np.int64)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start episodes everywhere, or in ``options["reset_mask"]``; a seed renews the cues."""
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise ValueError(
                f"reset options {sorted(unknown)} are unknown; TMaze takes reset_mask only."
            )
        mask = reset_mask(options, num_envs=self.num_envs)
        if seed is not None:
            self.np_random = self._generator(seed)
        self._start(np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask)
        return self._observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.float32],
        NDArray[np.bool_],
        NDArray[np.bool_],
        dict[str, Any],
    ]:
        """Carry every agent one cell; ``infos["success"]`` is 1 or 0 where an episode ends."""
        self._check_actions(actions)
        at_junction = self._decision == self.corridor_length
        is_over = self._decision > self.corridor_length
        is_right = actions == self._cue
        self._decision += 1
        if is_over.any():
            self._start(is_over)
        rewards = np.where(at_junction, np.where(is_right, 1, -1), 0).astype(np.float32)
        infos: dict[str, Any] = {}
        if at_junction.any():
            success = (at_junction & is_right).astype(np.float32)
            infos = {"success": success, "_success": at_junction.copy()}
        return self._observe(), rewards, at_junction, np.zeros_like(at_junction), infos

    def get_state(self) -> EnvState:
        """The state, generator included, as copies."""
        return {
            "corridor_length": self.corridor_length,
            "cue": self._cue.copy(),
            "decision": self._decision.copy(),
            "generator": json.dumps(self.np_random.bit_generator.state),
        }

    def set_state(self, state: EnvState) -> None:
        """Go on from a state of `get_state` of a T-maze of the same size."""
        cue, decision = np.asarray(state["cue"]), np.asarray(state["decision"])
        given = (state["corridor_length"], len(cue))
        own = (self.corridor_length, self.num_envs)
        if given != own:
            raise ValueError(
                f"the saved T-maze has (corridor_length, num_envs)={given} and this one {own}; "
                "make this one like the saved one to resume it."
            )
        self._cue = cue.astype(np.int8)
        self._decision = decision.astype(np.int64)
        self.np_random.bit_generator.state = json.loads(str(state["generator"]))

    def _generator(self, seed: int | Sequence[int]) -> np.random.Generator:
        if not isinstance(seed, int | np.integer) and len(seed) != self.num_envs:
            raise ValueError(
                f"reset got {len(seed)} seeds for {self.num_envs} environments; give one for each, "
                "or a single int."
            )
        return np.random.default_rng(np.random.SeedSequence(seed))

    def _start(self, mask: NDArray[np.bool_]) -> None:
        cue = self.np_random.integers(2, size=self.num_envs, dtype=np.int8)
        self._cue = np.where(mask, cue, self._cue)
        self._decision[mask] = 0

    def _observe(self) -> NDArray[np.float32]:
        is_start = self._decision == 0
        observations = np.empty((self.num_envs, 3), dtype=np.float32)
        observations[:, 0] = is_start & (self._cue == 0)
        observations[:, 1] = is_start & (self._cue == 1)
        observations[:, 2] = self._decision == self.corridor_length
        return observations

    def _check_actions(self, actions: NDArray[Any]) -> None:
        if actions.shape != (self.num_envs,) or ((actions != 0) & (actions != 1)).any():
            raise ValueError(
                f"actions {actions} are not legal; give an array of shape ({self.num_envs},) of 0 "
                "(left) and 1 (right)."
            )


def _check_corridor_length(corridor_length: int) -> None:
    if corridor_length < 1:
        raise ValueError(
            f"env.corridor_length={corridor_length} must be at least 1, e.g. "
            "env.corridor_length=100."
        )
