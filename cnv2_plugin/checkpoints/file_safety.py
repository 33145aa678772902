"""Checks before a file is read: that it claims no more memory than it holds, and is of no format that runs code; and
what weights-only loading admits besides tensors and plain containers, alike on every PyTorch since 2.4.
"""

import argparse
import codecs
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

_SHARES = 16
"""Tensors may share what the file holds: weights that are tied, or held as raw and averaged ones."""
Admitted = Union[type, Callable, tuple[Callable, str]]
"""A class or function, or a function with the name that a file calls it by."""
_admitted: list[Admitted] = [argparse.Namespace]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit; the message says what to do."""


class NeedsTrustError(CheckpointError):
    """A checkpoint holds objects that only unpickling, which can run code, would read."""


class OversizedError(ValueError):
    """A file claims more than it can hold; the message says what."""


def check_archive(path: Path) -> None:
    """Refuse an archive whose members unpack to more than the file, or whose checksums, unread by PyTorch, disagree."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        compressed = next((m.filename for m in members if m.compress_type != zipfile.ZIP_STORED), None)
        claimed = sum(member.file_size for member in members)
        if compressed or claimed > path.stat().st_size:
            fault = f'{compressed} in it is compressed' if compressed else f'its members claim {claimed:,} bytes'
            raise OversizedError(f'{fault}, but a checkpoint is stored as it is')
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f'the checksum of {damaged} does not agree')


def check_no_tar(path: Path) -> None:
    """Refuse the tar archives that PyTorch wrote before 0.1.10.

    Weights-only loading before PyTorch 2.6 runs code from them (CVE-2025-32434), later versions refuse them.
    """
    if tarfile.is_tarfile(path):
        raise tarfile.TarError(f'{path} is a tar archive')


def check_old_format(path: Path) -> None:
    """Refuse a file of ``torch.save`` before PyTorch 1.6 that announces larger tensors than it holds.

    That format names the size of each tensor in front of its bytes, and reading allocates what is named; here it is
    read with tensors that have no memory. Whatever else is wrong with the file, reading it says.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if zipfile.is_zipfile(path):
        return
    with FakeTensorMode():
        content = torch.load(path, map_location='cpu', weights_only=True)
    for name, tensor in _tensors(content):
        announced = tensor.untyped_storage().nbytes()
        if announced > path.stat().st_size:
            raise OversizedError(f'{name} is announced with {announced:,} bytes, more than the whole file')


def check_tensors(content: Any, limit: int) -> None:
    """Refuse tensors that would fill more than ``limit`` bytes, or that hold no plain numbers.

    Strides of 0, sparse layouts and views of one storage let a small file claim any number of elements.
    """
    total = 0
    for name, tensor in _tensors(content):
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            kind = 'meta' if tensor.is_meta else 'quantized' if tensor.is_quantized else str(tensor.layout)
            raise OversizedError(f'{name} is a {kind} tensor, but weights are plain dense ones')
        claimed = tensor.numel() * tensor.element_size()
        total += claimed
        if claimed > limit:
            raise OversizedError(f'{name} claims {tensor.numel():,} elements, more than the whole file can hold')
        if total > _SHARES * limit:
            raise OversizedError(f'its tensors claim {total:,} bytes up to {name}, many times what the file holds')


def _tensors(content: Any) -> Iterable[tuple[str, Tensor]]:
    """Every tensor in nested containers, each container once, however deep and often it is held."""
    waiting, seen = [('the tensor', content)], set()
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, Tensor):
            yield name, node
        elif isinstance(node, (Mapping, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, Mapping):
                waiting += [(str(key), value) for key, value in node.items()]
            else:
                waiting += [(f'{name}[{i}]', value) for i, value in enumerate(node)]


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
