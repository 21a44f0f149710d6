"""Launches of the native programs with plans from the Python codec."""

import pytest


def only(*kinds):
    """The kinds of launches (tests/native/conftest.py) that a test is for."""
    return pytest.mark.parametrize("native", kinds, indirect=True)
