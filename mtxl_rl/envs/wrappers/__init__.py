"""Wrappers for any environment."""
