"""Advantages: a pure function of rewards, episode ends and values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# B environments, T steps.


def gae(
    reward: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    valid: Bool[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    bootstrap_value: Float[Tensor, " B"],
    *,
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "B T"]:
    """Generalised advantage estimates under `NEXT_STEP` autoreset.

    The row after an episode's end carries the final observation and is not `valid`. It ends the
    recursion, and its value bootstraps an episode that was truncated (not one that terminated):

        A_t = valid_t (r_t + gamma (1 - terminated_t) (V_{t+1} + lambda A_{t+1}) - V_t)

    with V_T = `bootstrap_value` and A_T = 0. lambda = 0 gives the TD residual, lambda = 1 the
    discounted return minus the value. Schulman et al. 2016 (arXiv 1506.02438), eqs. 11 to 16.
    """
    next_value = torch.cat([value[:, 1:], bootstrap_value[:, None]], dim=1)
    discount = gamma * (~terminated.bool()).to(value.dtype)
    delta = reward + discount * next_value - value
    advantage = torch.zeros_like(value)
    following = torch.zeros_like(bootstrap_value)
    for t in range(value.shape[1] - 1, -1, -1):
        following = valid[:, t] * (delta[:, t] + discount[:, t] * gae_lambda * following)
        advantage[:, t] = following
    return advantage
