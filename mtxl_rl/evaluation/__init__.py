"""Suites, reports, confidence intervals and pictures of trained agents."""
