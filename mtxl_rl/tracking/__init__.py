"""Checkpoints, metrics, progress and what the command lines share."""
