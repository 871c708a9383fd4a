"""Check that acting and learning computed the same log-probabilities, up to rounding."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from mtxl_rl.agents.policy import PRECISIONS, Policy
from mtxl_rl.agents.rollout import Spans
from mtxl_rl.torso import MemoryState

NUM_PERTURBATIONS = 3
"""Policies with perturbed weights: a single one may be close to the exact result by chance."""


def check_ratio(policy: Policy, spans: Spans, deviation: float, *, bound: float) -> None:
    """Refuse to learn where acting computed something else than learning does.

    A step may be ill-conditioned, for example where the attention is about to switch. There float32
    can be off by 1e-4 in an agent whose median step is off by 1e-8. So a deviation above the bound
    is compared with what rounding makes of the same minibatch.

    Args:
        policy: with the weights that acted.
        spans: the first minibatch of an iteration.
        deviation: the largest |ratio - 1| in it.
        bound: the largest deviation that needs no explanation.

    Raises:
        RuntimeError: `deviation` is above its bound and more than ten times what rounding explains.
    """
    if not deviation > bound:  # A NaN stops the run as a non-finite loss.
        return
    rounding = rounding_deviation(policy, spans)
    if deviation > 10 * rounding:
        raise RuntimeError(
            f"losses/ratio_deviation={deviation:.2e} before the first update exceeds "
            f"ppo.ratio_bound={bound:.0e}, and rounding explains {rounding:.0e} of it: acting and "
            "learning disagree, which is a bug of the policy; please report it, or raise "
            "ppo.ratio_bound to continue"
        )


@torch.no_grad()
def rounding_deviation(policy: Policy, spans: Spans) -> float:
    """The largest |ratio - 1| between float64 and this policy with perturbed weights.

    Each weight is perturbed by at most its rounding error in the policy's precision.
    """
    state = spans.memory
    wide = state.apply(lambda field: field.double() if field.is_floating_point() else field)
    exact = _log_prob(_cast_copy(policy, torch.float64), spans, wide)
    half_ulp = torch.finfo(PRECISIONS[policy.config.precision]).eps / 2
    device = spans.value.device
    generator = torch.Generator(device).manual_seed(0)
    deviations = []
    for _ in range(NUM_PERTURBATIONS):
        perturbed = _cast_copy(policy, torch.float32)
        for weight in perturbed.parameters():
            noise = torch.rand(weight.shape, generator=generator, device=device)
            weight.mul_(1 + half_ulp * (2 * noise - 1))
        ratio = (_log_prob(perturbed, spans, state) - exact).exp()
        deviations.append(((ratio - 1).abs() * spans.valid).max())
    return float(torch.stack(deviations).max())


def _log_prob(policy: Policy, spans: Spans, state: MemoryState) -> Tensor:
    outputs, _ = policy(spans.inputs, state)
    return policy.action_head.log_prob(outputs.action_parameters, spans.action)


def _cast_copy(policy: Policy, dtype: torch.dtype) -> Policy:
    """A copy with weights of `dtype`; one in float64 computes without autocast."""
    copy = deepcopy(policy)
    if dtype == torch.float64:
        copy.config = replace(policy.config, precision="float32")
    return copy.to(dtype)
