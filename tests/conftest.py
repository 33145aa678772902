"""Tests that need a package are skipped, with its name, on a stack that lacks it."""

from importlib.util import find_spec

import pytest


def pytest_runtest_setup(item):
    """Read the marker ``needs``."""
    for marker in item.iter_markers('needs'):
        missing = [package for package in marker.args if find_spec(package) is None]
        if missing:
            pytest.skip(f'{", ".join(missing)} is not installed')
