"""Draws the rooms of the package and who imports whom, from the imports themselves, as docs/images/architecture.svg.

``python tools/draw_architecture.py`` writes the picture; a test fails on any import that points up.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / 'docs/images/architecture.svg'
LEVELS = (
    ('cli',),
    ('commands',),
    ('toolkits', 'analysis', 'registry', 'serving'),
    ('benchmark', 'lowering', 'whole'),
    ('deploy',),
    ('kernels',),
    ('graph',),
    ('checkpoints', 'sparsify'),
    ('models',),
    ('layers',),
    ('archs', 'config_files', 'interrupt'),
)
"""Rooms from top to bottom; a room may import those below it. ``serving`` stands apart: it takes the kernels alone."""

WIDTH, STEP, BOX = 780, 74, (150, 36)


def imports(package: Path) -> set[tuple[str, str, str]]:
    """Imports between two rooms: importing file, its room, the other room."""
    found = set()
    for file in sorted(package.rglob('*.py')):
        parts = file.relative_to(package).with_suffix('').parts
        folder = parts[:-1]
        for target in _relative_targets(ast.parse(file.read_text()), folder):
            if target and parts[0] not in ('__init__', '__main__') and target[0] != parts[0]:
                found.add((str(file.relative_to(package)), parts[0], target[0]))
    return {(file, a, b) for file, a, b in found if not b.startswith('__')}


def _relative_targets(tree: ast.AST, folder: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Modules that relative imports name, also those inside functions, counted from the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            if node.module:
                yield (*base, *node.module.split('.'))
            else:
                yield from ((*base, alias.name) for alias in node.names)


def upward(found: set[tuple[str, str, str]]) -> list[str]:
    """Imports that do not point to a lower level, and rooms that stand on none."""
    level = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
    wrong = [f'{room} stands on no level' for room in sorted({r for _, *pair in found for r in pair} - set(level))]
    for file, a, b in sorted(found):
        if a in level and b in level and level[a] >= level[b]:
            wrong.append(f'{file} imports {b}')
    return wrong


def picture(found: set[tuple[str, str, str]]) -> str:
    """The drawing as SVG."""
    place = {}
    for i, rooms in enumerate(LEVELS):
        for j, room in enumerate(rooms):
            place[room] = (WIDTH * (j + 1) / (len(rooms) + 1) + (40 if i % 2 else -40), STEP * i + 30)
    height = STEP * len(LEVELS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#557"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for a, b in sorted({(a, b) for _, a, b in found}):
        (x, y), (x2, y2) = place[a], place[b]
        y, y2 = y + BOX[1] / 2, y2 - BOX[1] / 2
        bend = (y2 - y) / 2
        parts.append(
            f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}" fill="none" '
            f'stroke="#557" stroke-opacity="0.55" marker-end="url(#tip)"><title>{a} imports {b}</title></path>'
        )
    for room, (x, y) in place.items():
        parts.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
            f'fill="#eef3ff" stroke="#557"/><text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
        )
    return '\n'.join([*parts, '</svg>', ''])


if __name__ == '__main__':
    PICTURE.write_text(picture(imports(ROOT / 'cnv2_plugin')))
    print(PICTURE)
