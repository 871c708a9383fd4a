"""Environments in equal groups that step independently of each other."""

from mtxl_rl.envs.registry import EnvConfig, make_vector_env
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv, EnvState


class EnvGroups:
    """Vector environments of one kind: while one steps, a policy may act in another.

    A group's seed is `seed` plus the index of its first environment, so that environments which
    take their vector's seed plus their index are the same ones in however many groups.

    Args:
        config: The config of the environment.
        num_envs: Environments in all.
        num_groups: Groups; must divide `num_envs`.
        seed: Seed of the first reset.
    """

    def __init__(self, config: EnvConfig, *, num_envs: int, num_groups: int, seed: int) -> None:
        assert num_envs % num_groups == 0, (num_envs, num_groups)
        size = num_envs // num_groups
        self.groups: list[CheckedVectorEnv] = []
        try:
            for first in range(0, num_envs, size):
                self.groups.append(make_vector_env(config, num_envs=size, seed=seed + first))
        except BaseException:
            self.close()
            raise
        self.single_observation_space = self.groups[0].single_observation_space
        self.single_action_space = self.groups[0].single_action_space

    @property
    def supports_state(self) -> bool:
        """Whether `get_state` and `set_state` work, for an exact resume."""
        return all(group.supports_state for group in self.groups)

    def get_state(self) -> EnvState:
        """The state of all groups, as copies, for `set_state`."""
        return {
            _key(index, name): value
            for index, group in enumerate(self.groups)
            for name, value in group.get_state().items()
        }

    def set_state(self, state: EnvState) -> None:
        """Go on from a state of `get_state`, of as many groups, in place of a reset."""
        parts: dict[int, EnvState] = {}
        for key, value in state.items():
            group_of, _, name = key.rpartition("/")
            parts.setdefault(int(group_of or 0), {})[name] = value
        if len(parts) != len(self.groups):
            raise ValueError(
                f"the state is of {len(parts)} groups of environments, and there are "
                f"{len(self.groups)}; go on with env_groups={len(parts)}"
            )
        for index, group in enumerate(self.groups):
            group.reset()
            group.set_state(parts[index])

    def close(self) -> None:
        """Close all environments; a second call does nothing."""
        for group in self.groups:
            group.close()


def _key(index: int, name: str) -> str:
    """A state's name; that of the first group is its own, so that one group's state is an env's."""
    return f"{index}/{name}" if index else name
