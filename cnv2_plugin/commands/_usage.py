"""Wrong usage that only a command itself can tell: exit code 2, as argparse gives for what it finds."""

from collections.abc import Sequence
from typing import Optional


class UsageError(ValueError):
    """Options contradict each other or the config that they change, or a value is none that the option takes."""


def check_input(size: Optional[Sequence[int]]) -> None:
    """Refuse an ``--input`` that is no image; None stands for the published size.

    Raises:
        UsageError: a number is not positive.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f'the input is {tuple(size)}; it takes three positive numbers (C, H, W).')
