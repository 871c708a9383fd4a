"""A recording of a small agent that is not trained."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mtxl_rl.agents.policy import Policy, PolicyConfig, PolicyInputs
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.torso import TorsoConfig


@pytest.fixture
def recorded() -> Callable[..., Recording]:
    """A function that records steps in observations of a space."""
    return _recorded


def _recorded(
    space: gymnasium.Space, *, steps: int = 12, max_steps: int = 10, **torso: object
) -> Recording:
    """A recording of two environments, whose second episodes start at step 7."""
    torch.manual_seed(0)
    config = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, **torso)
    policy = Policy(space, spaces.Discrete(3), torso=config, policy=PolicyConfig())
    recording = Recording(space, policy=policy, max_steps=max_steps, title="TMaze")
    space.seed(0)
    for t in range(steps):
        recording.add(
            PolicyInputs(
                {"obs": torch.as_tensor(np.stack([space.sample(), space.sample()]))},
                torch.zeros(2, 1, dtype=torch.long),
                torch.full((2,), float(t == 5)),
                torch.full((2,), t in (0, 7)),
            )
        )
    return recording
