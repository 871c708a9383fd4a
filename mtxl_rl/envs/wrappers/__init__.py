"""Wrappers that any environment can wear."""
