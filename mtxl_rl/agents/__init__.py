"""The agent: policy, encoders, heads, rollout and the PPO learner; it never sees an environment."""
