"""Wrong usage that only a command itself can tell: exit code 2, as argparse gives for what it finds."""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union


class UsageError(ValueError):
    """Options contradict each other or the config that they change, or a value is none that the option takes."""


CHECKPOINTS = ('.pth', '.pt', '.safetensors')


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of reading weights."""
    parser.add_argument('--no-ema', action='store_true', help='take the raw weights where there are averaged ones too')
    parser.add_argument('--trust', action='store_true', help='unpickle the checkpoint; only for files you trust')


def add_input_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--input C H W``."""
    text = 'input size; by default the published'
    parser.add_argument('--input', nargs=3, type=int, metavar=('C', 'H', 'W'), help=text)


def check_input(size: Optional[Sequence[int]]) -> None:
    """Raise a UsageError unless an ``--input`` is of positive numbers; None stands for the published size."""
    if size is not None and min(size) < 1:
        raise UsageError(f'the input is {tuple(size)}; it takes three positive numbers (C, H, W).')


def check_output(path: Union[str, Path], suffixes: Sequence[str] = CHECKPOINTS, option: str = '--out') -> None:
    """Raise unless a file may end so and can be written, before the work begins."""
    from ..checkpoints.io import check_folder, check_target

    path = Path(path)
    if path.suffix not in suffixes:
        raise UsageError(
            f'{option} {path} ends in {path.suffix or "nothing"}; give a name that ends in {" or ".join(suffixes)}.'
        )
    (check_folder if path.suffix == '.mlpackage' else check_target)(path)


def number(text: str) -> float:
    """Read a number of the command line that is not NaN."""
    value = float(text)
    if value != value:
        raise ValueError
    return value


def batch(text: str) -> Union[int, str]:
    """Read a batch size of the command line, which is ``'dynamic'`` or a positive number."""
    if text != 'dynamic' and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dynamic' nor a whole number of at least 1")
    return text if text == 'dynamic' else int(text)


def keyword(text: str) -> tuple[str, object]:
    """Split ``NAME=VALUE`` of the command line, the value as Python writes it, or as text."""
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
