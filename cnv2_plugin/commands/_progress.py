"""Who speaks, and progress on the terminal: on stderr, and nothing where nobody watches."""

import os
import sys
from collections.abc import Callable


def is_first_process() -> bool:
    """Whether this is the process that speaks for all of a distributed run, or the only one."""
    return os.environ.get('RANK', '0') == '0'


def progress_printer(quiet: bool = False) -> Callable[[str], None]:
    """A function that prints one line of progress to stderr; it prints nothing when piped.

    Args:
        quiet: print nothing in any case.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    return lambda text: console.print(text, highlight=False)
