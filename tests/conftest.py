"""Skips tests that cannot run under the shape checks, in sessions that have them."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip `unchecked` and `compile` tests where jaxtyping checks the package."""
    if not config.getoption("jaxtyping_packages", default=None):
        return
    skip = pytest.mark.skip(reason="needs a session without --jaxtyping-packages: see the Makefile")
    for item in items:
        if {"unchecked", "compile"} & set(item.keywords):
            item.add_marker(skip)
