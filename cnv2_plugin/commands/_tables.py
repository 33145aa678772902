"""Tables on the terminal and as Markdown."""

import sys
from collections.abc import Iterable, Sequence


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence], markdown: bool = False) -> None:
    """Print rows of plain values; the first column is text, the others are aligned right."""
    rows = [[str(cell) for cell in row] for row in rows]
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
