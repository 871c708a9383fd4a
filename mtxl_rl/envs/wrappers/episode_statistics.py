"""Returns and lengths of episodes, reported in Gymnasium's format and kept across a resume."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from mtxl_rl.env_keys import STATISTICS_KEY
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv, EnvState

_STATE_KEYS = ("episode_returns", "episode_lengths", "prev_dones")


class EpisodeStatistics(RecordEpisodeStatistics):
    """Reports, where episodes end, ``info["episode_statistics"]`` with "r" and "l" [B].

    ``info["_episode_statistics"]`` [B] marks the episodes that ended. The sums of unfinished
    episodes are part of the environment's state.
    """

    def __init__(self, env: CheckedVectorEnv) -> None:
        super().__init__(env, stats_key=STATISTICS_KEY)
        self.checked = env

    @property
    def supports_state(self) -> bool:
        """Whether `get_state` and `set_state` work, for an exact resume."""
        return self.checked.supports_state

    def reset(
        self, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; the rest continue."""
        # Gymnasium removes reset_mask from the caller's options, hence the copy.
        return super().reset(
            seed=seed,  # type: ignore[arg-type]
            options=None if options is None else dict(options),
        )

    def get_state(self) -> EnvState:
        """Return copies of the state, for `set_state`."""
        sums = {f"statistics/{key}": np.copy(getattr(self, key)) for key in _STATE_KEYS}
        return self.checked.get_state() | sums

    def set_state(self, state: EnvState) -> None:
        """Continue from a state of `get_state`, instead of a reset."""
        env_state: dict[str, Any] = dict(state)
        for key in _STATE_KEYS:
            setattr(self, key, np.copy(env_state.pop(f"statistics/{key}")))
        self.checked.set_state(env_state)
