"""Results in CSV files: one row a run, numbers and nested values as JSON text, empty where a run has no such value."""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from cnv2_plugin.checkpoints import atomic_path

TEXT = ('name', 'fingerprint', 'command', 'date', 'device')
"""Columns that stand as they are; all others are JSON."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file without their empty cells; none where there is no file."""
    if not path.exists():
        return []
    stat = path.stat()
    return list(_rows(path, stat.st_mtime_ns, stat.st_size))


@lru_cache
def _rows(path: Path, *version: int) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    with open(path, newline='') as file:
        return [
            {key: cell if key in TEXT else json.loads(cell) for key, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a file; its columns are all that any row has."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        for row in rows:
            writer.writerow({
                key: value if key in TEXT else json.dumps(value, separators=(',', ':')) for key, value in row.items()
            })  # fmt: skip


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row, also where other processes add theirs, and sort by name and seed."""
    with locked(path.with_suffix('.lock'), wait=True):
        rows = [*read_rows(path), json.loads(json.dumps(row))]
        write_rows(path, sorted(rows, key=lambda one: (one['name'], one.get('seed', 0))))


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock that ends with the process, whatever ends it; where the system has none, there is none.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is off.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
