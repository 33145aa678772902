"""What commands print and write: tables on the terminal, as Markdown or JSON; progress; JSON files."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, Optional, Union

_collected: ContextVar[Optional[list[dict[str, Any]]]] = ContextVar('collected', default=None)
_NUMBER = re.compile(r'[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?')


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence], markdown: bool = False) -> None:
    """Print rows of plain values; the first column is aligned left, the others right. Markdown has no title.

    Inside :func:`tables_as_json` the table is kept for the JSON text instead.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    tables = _collected.get()
    if tables is not None:
        tables.append(dict(title=title, columns=list(header), rows=[[_plain(cell) for cell in row] for row in rows]))
    elif markdown:
        for row in (header, ['---', *['---:'] * (len(header) - 1)], *rows):
            print(f'| {" | ".join(row)} |')
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title)
        for i, name in enumerate(header):
            table.add_column(name, justify='right' if i else 'left', overflow='fold')
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 140).print(table)


@contextmanager
def tables_as_json(command: str) -> Iterator[None]:
    """Print the tables of a command as one JSON text, alone on stdout; everything else goes to stderr.

    Nothing is printed if the command fails. In a distributed run only the first process prints.
    """
    token = _collected.set([])
    try:
        with redirect_stdout(sys.stderr):
            yield
        if is_first_process():
            write_json('-', dict(command=command, tables=_collected.get()))
    finally:
        _collected.reset(token)


def write_json(path: str, content: Any) -> None:
    """Write plain values so that the file appears whole or not at all; ``-`` prints them to stdout."""
    text = json.dumps(content, indent=1) + '\n'
    if path == '-':
        sys.stdout.write(text)
        return
    from ..checkpoints import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text)


def is_first_process() -> bool:
    """Whether this process is the first of a distributed run, or the only one."""
    return os.environ.get('RANK', '0') == '0'


def progress_printer(quiet: bool = False) -> Callable[[str], None]:
    """Make a function that prints a line of progress to stderr, on a terminal and unless ``quiet`` only."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    return lambda text: console.print(text, highlight=False)


def _plain(cell: str) -> Union[str, int, float]:
    """Figures as numbers; percentages, figures with units and all other text as they are."""
    if not _NUMBER.fullmatch(cell):
        return cell
    digits = cell.replace(',', '')
    return int(digits) if re.fullmatch(r'[+-]?\d+', digits) else float(digits)
