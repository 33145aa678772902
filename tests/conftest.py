"""Tests that need a package or a compiler are skipped, with its name, where it is missing."""

from importlib.util import find_spec

import pytest

from tests.helpers import has_compiler, lacks_kernels

HERE = {'c++': has_compiler, 'kernels': lambda: not lacks_kernels()}
"""What is no package: how to tell whether it is there."""


def pytest_runtest_setup(item):
    """Read the marker ``needs``."""
    for marker in item.iter_markers('needs'):
        missing = [name for name in marker.args if not (HERE[name]() if name in HERE else find_spec(name))]
        if missing:
            pytest.skip(f'there is no {", no ".join(missing)} here')
