"""Algorithms, which see rollouts and a policy, never an environment; torsos in other agents."""
