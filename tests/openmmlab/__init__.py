"""Tests of the OpenMMLab side, through the toolkits' own entry points."""

import pytest

pytest.importorskip('mmengine')
