"""Progress on the terminal: on stderr, and nothing where nobody watches."""

import sys
from collections.abc import Callable


def progress_printer(quiet: bool = False) -> Callable[[str], None]:
    """A function that prints one line of progress to stderr; it prints nothing when piped.

    Args:
        quiet: print nothing in any case.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    return lambda text: console.print(text, highlight=False)
