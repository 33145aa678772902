"""Lets weights-only ``torch.load`` (the default since torch 2.6) read what mmengine writes.

mmengine's checkpoints hold its logging history beside the weights: ``HistoryBuffer`` objects of NumPy arrays. Exactly
the classes those need are allowed; any other class in a checkpoint is still refused.
"""

import pickle

import numpy
import torch
from mmengine.logging import HistoryBuffer

from ...checkpoints.safe_globals import admit, for_torch

_HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')
_NUMERIC_DTYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64')
_FLOAT_DTYPES = ('float16', 'float32', 'float64')


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
    dtypes = list({type(numpy.dtype(name)) for name in _NUMERIC_DTYPES + _FLOAT_DTYPES})
    return [HistoryBuffer, (_history_statistic, 'builtins.getattr'), numpy.ndarray, numpy.dtype, *functions, *dtypes]


def _history_statistic(owner, name):
    if owner is not HistoryBuffer or name not in _HISTORY_STATISTICS:
        raise pickle.UnpicklingError(
            f'Weights only load failed: the checkpoint asks for the attribute {name!r} of {owner!r}; only '
            f'{", ".join(_HISTORY_STATISTICS)} of HistoryBuffer are allowed.'
        )
    return getattr(HistoryBuffer, name)
