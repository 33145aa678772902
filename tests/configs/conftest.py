"""Reads each model index of the toolkits once: configs name their bases through it."""

from functools import lru_cache

import pytest


@pytest.fixture(scope='package', autouse=True)
def cached_model_index():
    """``mmpretrain::`` and ``mmdet::`` make mmengine parse some hundred YAML files for every base."""
    utils = pytest.importorskip('mmengine.config.utils')
    plain = utils.load
    utils.load = lru_cache(maxsize=None)(plain)
    yield
    utils.load = plain
