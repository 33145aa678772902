"""Wrong usage that only a command itself can tell: exit code 2, as argparse gives for what it finds."""

import argparse
import ast
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Optional, Union


class UsageError(ValueError):
    """Options contradict each other or the config that they change, or a value is none that the option takes."""


CHECKPOINTS = ('.pth', '.pt', '.safetensors')


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--no-ema', action='store_true', help='take the raw weights where there are averaged ones too')
    parser.add_argument('--key', metavar='NAME', help='where in the file the weights are (such as teacher.state_dict); '
                        'found by default')  # fmt: skip
    parser.add_argument('--prefix', help="what stands in front of the names of the model's tensors; found by default")
    parser.add_argument('--trust', action='store_true', help='unpickle the checkpoint; only for files you trust')


def weights_of(checkpoint: dict[str, Any], args: argparse.Namespace, known: Collection[str] = ()) -> dict[str, Any]:
    """The weights in a checkpoint as the options of :func:`add_weights_options` choose; says on stderr which."""
    from ..checkpoints import find_weights

    found = find_weights(checkpoint, not args.no_ema, args.key, args.prefix, known)
    if found.said:
        print(f'cnv2: {found.said}.', file=sys.stderr)
    return found.state_dict


def check_paths(outputs: Iterable[Union[str, Path, None]], inputs: Iterable[Union[str, Path, None]]) -> None:
    """Raise where a file would be written twice, or in place of one that is read, by whatever name or link."""
    read = [file for file in map(Path, filter(None, inputs)) if file.exists()]
    written = set()
    for path in map(Path, filter(None, outputs)):
        if path.exists() and (same := next(filter(path.samefile, read), None)):
            raise ValueError(f'{path} would overwrite {same}, which is read; give another name.')
        place = os.path.realpath(path).casefold()
        if place in written:
            raise ValueError(f'{path} would be written twice; give each file a name of its own.')
        written.add(place)


def add_input_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--input', nargs=3, type=int, metavar=('C', 'H', 'W'), help='input size; by default the published'
    )


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
