"""Imports point down, and the page that says so names rooms and files as they are."""

import ast
import importlib.util
import re

import pytest

from tests.docs.blocks import ROOT

_spec = importlib.util.spec_from_file_location('draw_architecture', ROOT / 'tools/draw_architecture.py')
drawing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(drawing)

PACKAGE = ROOT / 'cnv2_plugin'
PAGE = (ROOT / 'docs/architecture.md').read_text()
OTHERS = 'every other room'


def denied(page):
    """Rooms and packages that the page's table denies to each room: its last column."""
    rows = re.findall(r'^\| `([\w.]+)/?` \|.*\| ([^|]+) \|$', page, re.MULTILINE)
    rooms = {room.removesuffix('.py') for room, _ in rows}
    found = {}
    for room, cell in rows:
        room = room.removesuffix('.py')
        denies, _, but = cell.partition(' but ')
        names = {name.removesuffix('.py') for name in re.findall(r'`([\w.]+)/?`', denies)}
        exempt = {name.removesuffix('.py') for name in re.findall(r'`([\w.]+)/?`', but)} | {room}
        found[room] = names | (rooms - exempt if OTHERS in denies else set())
    return found


def packages(package):
    """Importing file, its room and the other package, of absolute imports."""
    for file in package.rglob('*.py'):
        place = file.relative_to(package)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            yield from ((str(place), place.with_suffix('').parts[0], name.partition('.')[0]) for name in names)


def broken_promises(page, package):
    """Imports of what the page's table denies."""
    table = denied(page)
    found = drawing.imports(package) | set(packages(package))
    return sorted(f'{file} imports {name}' for file, room, name in found if name in table.get(room, ()))


def test_no_import_points_up_and_no_circle_is_left():
    found = drawing.imports(PACKAGE)
    assert {room for _, room, _ in found} >= {'models', 'graph', 'deploy', 'commands'}
    assert drawing.upward(found) == []


def test_the_table_of_the_page_has_every_room_and_holds():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or any(path.glob('*.py'))}
    rooms -= {'__init__', '__main__'}
    assert set(denied(PAGE)) == rooms
    assert broken_promises(PAGE, PACKAGE) == []


def test_every_file_that_the_page_names_is_there():
    named = {name for name in re.findall(r'`([\w./]+)`', PAGE) if '/' in name}
    assert 'kernels/csrc' in {name.rstrip('/') for name in named}
    assert not [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()]


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
    write(tmp_path / place, text)
    assert message in drawing.upward(drawing.imports(tmp_path))


@pytest.mark.parametrize(
    ('place', 'text', 'wrong'),
    [
        ('deploy/a.py', 'def f():\n    import timm.layers', ['deploy/a.py imports timm']),
        ('deploy/b.py', 'from ..models import x', []),
        ('archs.py', 'from .layers import x', ['archs.py imports layers']),
        ('cli.py', 'from .commands import x\nfrom .models import y', ['cli.py imports models']),
    ],
)
def test_an_import_that_the_table_denies_is_seen(tmp_path, place, text, wrong):
    page = (
        '| `archs.py` | networks | every other room |\n| `models/` | x | nothing |\n| `layers/` | x | `models/` |\n'
        '| `deploy/` | x | `timm` |\n| `commands/` | x | `cli.py` |\n'
        '| `cli.py` | x | every other room but `commands/` |\n'
    )
    write(tmp_path / place, text)
    assert broken_promises(page, tmp_path) == wrong


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
