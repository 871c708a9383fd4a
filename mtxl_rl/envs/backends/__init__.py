"""Environments of other packages: Gymnasium and EnvPool."""
