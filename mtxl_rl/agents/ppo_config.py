"""Settings of PPO."""

import math
from dataclasses import dataclass

from mtxl_rl.torso.torso_config import check_at_least, check_choice

REFRESH = ("never", "epoch")


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """Settings of PPO."""

    rollout_length: int = 128
    """Steps of each environment per iteration, T; a multiple of bptt_segments x segment_length."""
    bptt_segments: int = 4
    """Segments per span: gradients flow through the long-term memory over this many."""
    num_epochs: int = 3
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Minibatches of each pass; must divide num_envs x spans per rollout."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 0.0
    """Adam's step size at total_steps; linear in between."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start."""
    final_entropy_coef: float = 0.001
    """Weight of the entropy bonus at total_steps; linear in between."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimates."""
    clip_coef: float = 0.2
    """The ratio is clipped to 1 +- this."""
    kl_coef: float = 1.0
    """Weight of the KL penalty KL(old || new), averaged over steps; 0: none. It pulls each step
    back in proportion to its own change. Once a task is solved, normalised advantages are noise at
    full strength. Without the penalty the policy follows that noise: the few steps that decide an
    episode change far before the mean KL reaches `target_kl`."""
    advantage_floor: float = 1.0
    """Slow down where the advantages' deviation is below this times the returns' deviation: the
    learning rate shrinks in proportion; 0: never. Adam normalises gradients, so the weights move
    as far on noise as on a signal, and once a task is solved only noise is left. Needs popart."""
    coef: float = 1.0
    """Weight of the surrogate, the KL penalty and the entropy bonus at the start; 0 only imitates
    the teacher."""
    final_coef: float = 1.0
    """The same after teacher.steps; linear in between."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    popart: bool = True
    """Predict values, and weigh their loss, in units of the returns' deviation (PopArt)."""
    average_iterations: int = 0
    """Evaluations and saved agents have an average of the weights, which each iteration moves by
    one part in this many; training acts with the last weights. 0: the last weights everywhere."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float = 0.02
    """Stop learning from a rollout when a minibatch's approx_kl exceeds 1.5 times this; 0: never.
    Near a deterministic policy, clipping does not bound the KL; this does."""
    memory_refresh: str = "never"
    """When to recompute the stored memories with the current weights: never, or before every epoch
    but the first."""
    ratio_bound: float = 0.0
    """Largest |ratio - 1| before an iteration's first update, unless rounding explains a larger one
    in the same minibatch; 0: 1e-4, or 0.25 in bfloat16."""

    def __post_init__(self) -> None:
        """Check ranges."""
        counts = ("rollout_length", "bptt_segments", "num_epochs", "num_minibatches")
        check_at_least(self, 1, *counts, prefix="ppo.")
        coefs = (
            "coef", "final_coef", "kl_coef", "advantage_floor", "value_coef",
            "entropy_coef", "final_entropy_coef",
        )  # fmt: skip
        bounds = ("final_learning_rate", "target_kl", "ratio_bound", "average_iterations")
        check_at_least(self, 0, *coefs, *bounds, prefix="ppo.")
        for field in (*coefs, "learning_rate", "final_learning_rate"):
            if not math.isfinite(getattr(self, field)):
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be a finite number")
        for field in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be in 0 .. 1")
        for field in ("learning_rate", "clip_coef", "max_grad_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"ppo.{field}={getattr(self, field)} must be above 0")
        check_choice("ppo.memory_refresh", self.memory_refresh, REFRESH)
