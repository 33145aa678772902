"""Runs whose checkpoints cannot run code.

mmengine reads a checkpoint as ``torch.load`` does by default, which unpickles before PyTorch 2.6, and what it downloads
by full unpickling. Its maintained fork falls back to full unpickling, and admits ``getattr`` before that. Its files
hold its logging history beside the weights: ``HistoryBuffer`` objects of NumPy arrays. Exactly the classes those need
are admitted to weights-only loading; any other class in a checkpoint is still refused.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, find_latest_checkpoint
from mmengine.runner import checkpoint as loading

from ...checkpoints import CheckpointError, NeedsTrustError, load_checkpoint
from ...checkpoints.file_safety import admit, for_torch

_ONLY_WEIGHTS, _EVERYTHING = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


@contextmanager
def safe_loading(trust: bool = False) -> Iterator[None]:
    """Keep files from running code while a config is built and run.

    mmengine's loader (``load_from``, resuming, ``Pretrained``, teachers) takes only what
    :func:`cnv2_plugin.checkpoints.load_checkpoint` reads, and every ``torch.load`` of this process and its workers is
    weights-only; what needs more raises CheckpointError, unless ``trust`` says to unpickle.
    """
    if trust:
        with _environment(_EVERYTHING):
            yield
        return
    try:
        checked = staticmethod(_checked(CheckpointLoader.load_checkpoint))
        with _environment(_ONLY_WEIGHTS), _replaced(CheckpointLoader, 'load_checkpoint', checked), _our_list():
            yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            'a file that this run loads holds Python objects besides tensors, and reading those can run code; --debug '
            'shows where it is read, and if you know where it comes from, repeat with --trust.'
        ) from error


def check_start(cfg: Config) -> None:
    """Read the checkpoint that mmengine's runner will start from, before anything is built; raise CheckpointError."""
    start = cfg.get('load_from') or (find_latest_checkpoint(cfg.work_dir) if cfg.get('resume') else None)
    if start:
        _checked(lambda path: None)(start)


@contextmanager
def _environment(chosen: str) -> Iterator[None]:
    """Set one of PyTorch's two variables, which exclude each other; workers inherit it."""
    before = {name: os.environ.pop(name, None) for name in (_ONLY_WEIGHTS, _EVERYTHING)}
    os.environ[chosen] = '1'
    try:
        yield
    finally:
        del os.environ[chosen]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _checked(load: Callable) -> Callable:
    """A loader that reads a local file only after ours could, and names one that may not be read."""

    def load_after_check(filename, *args, **kwargs):
        try:
            if '://' not in str(filename):
                load_checkpoint(Path(filename).expanduser())
            return load(filename, *args, **kwargs)
        except (NeedsTrustError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f'{filename} holds Python objects besides tensors, and reading those can run code; if you know where '
                f'it comes from, repeat with --trust, or take its weights out with "cnv2 convert-keys {filename} '
                f'weights.pth --to mmpretrain --trust".'
            ) from error

    return load_after_check


@contextmanager
def _our_list() -> Iterator[None]:
    """Let the fork's loader admit what ours does; afterwards it takes its list away, and with it ours."""
    admitted = _replaced(loading, 'get_torch_safe_globals', lambda: for_torch(mmengine_globals()))
    try:
        with admitted if hasattr(loading, 'get_torch_safe_globals') else nullcontext():
            yield
    finally:
        allow_mmengine_checkpoints()


def allow_mmengine_checkpoints() -> None:
    """Allow-list mmengine's ``HistoryBuffer`` and NumPy's numeric arrays and scalars for weights-only loading.

    Holds for ``torch.load`` and, whatever others do to PyTorch's list meanwhile, for our ``load_checkpoint``.
    """
    admit(mmengine_globals())
    torch.serialization.add_safe_globals(for_torch(mmengine_globals()))


def mmengine_globals() -> list:
    """What mmengine's checkpoints name in their pickles, besides tensors and plain containers.

    ``HistoryBuffer`` pickles its statistics as ``getattr(HistoryBuffer, 'mean')``: ``getattr`` itself is not allowed,
    its name leads to :func:`_history_statistic` instead.
    """
    multiarray = numpy._core.multiarray if numpy.__version__ >= '2' else numpy.core.multiarray
    functions = [
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    ]
    dtypes = list({type(numpy.dtype(name)) for name in '? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()})
    return [HistoryBuffer, (_history_statistic, 'builtins.getattr'), numpy.ndarray, numpy.dtype, *functions, *dtypes]


def _history_statistic(owner, name):
    if owner is not HistoryBuffer or name not in _HISTORY_STATISTICS:
        raise pickle.UnpicklingError(
            f'Weights only load failed: the checkpoint asks for the attribute {name!r} of {owner!r}; only '
            f'{", ".join(_HISTORY_STATISTICS)} of HistoryBuffer are allowed.'
        )
    return getattr(HistoryBuffer, name)
