"""Gymnasium ids of the built-in tasks, such as ``mtxl_rl/TMaze-v0``."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from mtxl_rl.envs.tasks.catalog import TASKS
from mtxl_rl.envs.tasks.vector_task import VectorTask
from mtxl_rl.envs.wrappers.single_env import SingleEnv


def register_tasks() -> None:
    """Register every built-in task with Gymnasium."""
    for name in TASKS:
        gymnasium.register(
            id=f"mtxl_rl/{name}-v0",
            entry_point=f"{__name__}:make_task_env",
            vector_entry_point=f"{__name__}:make_task_vector",
            kwargs={"name": name},
        )


def make_task_vector(
    num_envs: int = 1,
    *,
    name: str,
    seed: int | Sequence[int] | None = None,
    render_mode: str | None = None,
    **settings: Any,  # noqa: ANN401 - the config's fields
) -> VectorTask:
    """Create a vector of one task's environments, as `gymnasium.make_vec` does.

    Args:
        num_envs: Number of environments.
        name: The task's name.
        seed: Seed of the first reset; None draws one.
        render_mode: None or ``rgb_array``.
        settings: Fields of the task's config.
    """
    if render_mode not in (None, *VectorTask.metadata["render_modes"]):
        raise ValueError(
            f"render_mode={render_mode!r} is unknown; pass render_mode='rgb_array' or None."
        )
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    task = TASKS[name]
    env = task.task_class(task.config(**settings), num_envs=num_envs, seed=seed)  # type: ignore[call-arg]
    env.render_mode = render_mode
    return env


def make_task_env(**options: Any) -> SingleEnv:  # noqa: ANN401 - those of make_task_vector
    """Create one environment of a task, as `gymnasium.make` does."""
    return SingleEnv(make_task_vector(1, **options))
