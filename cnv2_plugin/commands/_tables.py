"""Tables on the terminal, as Markdown and as JSON."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, Optional, Union

from ._progress import is_first_process

_collected: ContextVar[Optional[list[dict[str, Any]]]] = ContextVar('collected', default=None)
_NUMBER = re.compile(r'[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?')


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence], markdown: bool = False) -> None:
    """Print rows of plain values; the first column is text, the others are aligned right.

    Args:
        title: of the table; Markdown has none.
        header: names of the columns.
        rows: cells, in the order of the columns.
        markdown: print Markdown; inside :func:`tables_as_json` nothing is printed, but kept for the JSON text.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    tables = _collected.get()
    if tables is not None:
        tables.append(dict(title=title, columns=list(header), rows=[[_plain(cell) for cell in row] for row in rows]))
        return
    if markdown:
        print('| ' + ' | '.join(header) + ' |')
        print('|' + '---|' + '---:|' * (len(header) - 1))
        for row in rows:
            print('| ' + ' | '.join(row) + ' |')
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify='left' if i == 0 else 'right', overflow='fold')
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@contextmanager
def tables_as_json(command: str) -> Iterator[None]:
    """Print the tables of a command as one JSON text once it succeeded; stdout holds that alone.

    What the command says besides goes to stderr. Nothing is printed where the command fails, and by the first of
    several processes only.

    Args:
        command: name of the command.
    """
    token = _collected.set([])
    try:
        with redirect_stdout(sys.stderr):
            yield
        if is_first_process():
            print(json.dumps(dict(command=command, tables=_collected.get()), indent=1))
    finally:
        _collected.reset(token)


def _plain(cell: str) -> Union[str, int, float]:
    """Figures as numbers; percentages, units and everything else stay text."""
    if not _NUMBER.fullmatch(cell):
        return cell
    digits = cell.replace(',', '')
    return int(digits) if re.fullmatch(r'[+-]?\d+', digits) else float(digits)
