"""The loss of PPO (Schulman et al. 2017, arXiv 1707.06347)."""

import torch
from jaxtyping import Float
from torch import Tensor

from mtxl_rl.agents.rollout import Spans

# I spans of a minibatch, L steps of a span.


def ppo_loss(
    log_prob: Float[Tensor, "I L"],
    entropy: Float[Tensor, "I L"],
    value: Float[Tensor, "I L"],
    spans: Spans,
    *,
    num_valid: Tensor | None = None,
    value_deviation: Tensor | float = 1.0,
    clip_coef: float,
    kl_coef: float,
    value_coef: float,
    entropy_coef: Tensor | float,
    coef: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Clipped surrogate, KL penalty, value and entropy terms, averaged over the valid steps.

    L = coef (-min(rho A, clip(rho, 1 - c, 1 + c) A) + kl_coef (rho - 1 - log rho)
              - entropy_coef H) + value_coef (V - target)^2 / 2,
    rho = exp(log_prob - stored log_prob); eqs. 7 to 9 of the paper. rho - 1 - log rho estimates
    KL(old || new) without bias and is never negative (Schulman 2020, "Approximating KL
    divergence"). V and the target are measured in units of `value_deviation`. In a data-parallel
    run `num_valid` counts the valid steps of all processes: then the processes' losses and metrics
    sum to those of the whole minibatch.
    """
    weight = spans.valid / (spans.valid.sum() if num_valid is None else num_valid).clamp(min=1)
    # A weight of zero alone is not enough: an invalid step may overflow, and zero times inf is NaN.
    log_ratio = (log_prob - spans.log_prob).masked_fill(~spans.valid, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    surrogate = torch.minimum(ratio * spans.advantage, clipped * spans.advantage)
    policy_loss = -(weight * surrogate).sum()
    value_error = (value - spans.value_target) / value_deviation
    value_loss = 0.5 * (weight * value_error.square()).sum()
    mean_entropy = (weight * entropy).sum()
    approx_kl = (weight * (ratio - 1 - log_ratio)).sum()
    loss = policy_loss + kl_coef * approx_kl - entropy_coef * mean_entropy
    loss = coef * loss + value_coef * value_loss
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_coef).to(weight.dtype)
        metrics = {
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/entropy": mean_entropy,
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": (weight * outside).sum(),
            "losses/ratio_deviation": (ratio - 1).abs().max(),
        }
    return loss, {key: metric.detach() for key, metric in metrics.items()}
