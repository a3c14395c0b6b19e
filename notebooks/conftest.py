"""Which notebooks are slow."""

from __future__ import annotations

import pytest

SLOW = {"01_first_distillation.ipynb"}
"""Notebooks that take more than half a minute of one core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow notebooks."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
