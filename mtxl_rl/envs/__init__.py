"""Worlds for agents with memory: NumPy and Gymnasium only, never Torch."""
