"""The interface of vector environments that acting needs."""

from typing import Any, Protocol, runtime_checkable

import gymnasium


@runtime_checkable
class VectorEnv(Protocol):
    """The part of `gymnasium.vector.VectorEnv` that acting needs, with NEXT_STEP autoreset."""

    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

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
