"""Algorithms: they see rollouts and a policy, never an environment."""
