"""Wrong usage that only a command itself can tell: exit code 2, as argparse gives for what it finds."""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union


class UsageError(ValueError):
    """Options contradict each other or the config that they change, or a value is none that the option takes."""


def check_input(size: Optional[Sequence[int]]) -> None:
    """Refuse an ``--input`` that is no image; None stands for the published size.

    Raises:
        UsageError: a number is not positive.
    """
    if size is not None and min(size) < 1:
        raise UsageError(f'the input is {tuple(size)}; it takes three positive numbers (C, H, W).')


def check_output(path: Union[str, Path], suffixes: Sequence[str] = ('.pth', '.pt', '.safetensors')) -> None:
    """Refuse a file that the command cannot write, before the work for it begins.

    Raises:
        UsageError: its name does not end in one of ``suffixes``.
        ValueError: its folder does not exist.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise UsageError(
            f'{path} ends in {path.suffix or "nothing"}; give a name that ends in {" or ".join(suffixes)}.'
        )
    if not path.parent.is_dir():
        raise ValueError(f'the folder {path.parent} of {path.name} does not exist; make it first.')


def keyword(text: str) -> tuple[str, object]:
    """``NAME=VALUE`` of the command line, the value as Python writes it, or as text.

    Raises:
        argparse.ArgumentTypeError: the text is not of that form.
    """
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
