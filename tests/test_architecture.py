"""Imports point down, and the page that says so names files that are there."""

import importlib.util
import re

import pytest

from tests.docs.blocks import ROOT

_spec = importlib.util.spec_from_file_location('draw_architecture', ROOT / 'tools/draw_architecture.py')
drawing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(drawing)


def test_no_import_points_up_and_no_circle_is_left():
    found = drawing.imports(ROOT / 'cnv2_plugin')
    assert len(found) > 50
    assert drawing.upward(found) == []


def test_every_file_that_the_page_names_is_there():
    page = (ROOT / 'docs/architecture.md').read_text()
    named = {name for name in re.findall(r'`([\w./]+)`', page) if '/' in name}
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / 'cnv2_plugin' / name).exists() and not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ('place', 'text', 'message'),
    [
        ('layers/a.py', 'from ..deploy import condense', 'layers/a.py imports deploy'),
        ('layers/b.py', 'def f():\n    from ..models.base import x', 'layers/b.py imports models'),
        ('layers/c/d.py', 'from ... import cli', 'layers/c/d.py imports cli'),
        ('attic/e.py', 'from ..layers import x', 'attic stands on no level'),
    ],
)
def test_an_upward_import_is_seen(tmp_path, place, text, message):
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert message in drawing.upward(drawing.imports(tmp_path))
