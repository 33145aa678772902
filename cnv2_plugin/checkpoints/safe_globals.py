"""What weights-only loading admits besides tensors and plain containers, alike on every PyTorch since 2.4."""

import argparse
import codecs
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Union

import torch

Admitted = Union[type, Callable, tuple[Callable, str]]
"""A class or function, or a function with the name that a file calls it by."""

_admitted: list[Admitted] = [argparse.Namespace]


def admit(entries: Iterable[Admitted]) -> None:
    """Let ``load_checkpoint`` read these too: classes without behaviour, functions that anything can be given to."""
    _admitted.extend(entry for entry in entries if entry not in _admitted)


@contextmanager
def admitted() -> Iterator[None]:
    """Admit what :func:`admit` was given, and afterwards only what was admitted before.

    ``torch.serialization.safe_globals`` came with PyTorch 2.5, and takes away what was admitted before as well.
    """
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(for_torch(_admitted))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def for_torch(entries: Iterable[Admitted]) -> list[Any]:
    """Entries as ``torch.serialization.add_safe_globals`` of the installed PyTorch takes them.

    Before PyTorch 2.6 it knows no pairs, but asks a function for its name; and the encoder of bytes is not yet among
    what is always admitted.
    """
    if torch.__version__ >= '2.6':
        return list(entries)
    return [codecs.encode, *(_renamed(*entry) if isinstance(entry, tuple) else entry for entry in entries)]


@cache
def _renamed(function: Callable, path: str) -> Callable:
    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, _, renamed.__qualname__ = path.rpartition('.')
    renamed.__name__ = renamed.__qualname__
    return renamed
