"""Batch normalisation in the exact conversions: telling whether a module is one, and gathering its channels."""

from copy import deepcopy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from .known import PARAMETRISED, UnknownModuleError, is_class, peculiarity

_DEVIATIONS = (-1e3, -10.0, -1.0, -0.1, 0.1, 1.0, 10.0, 1e3)
"""Distances of the trial features from the running mean, in standard deviations."""


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalises by batch statistics and does nothing else.

    SyncBN does, timm's ``SplitBatchNorm2d`` and every ``FrozenBatchNorm2d``; ``BatchNormAct2d`` only with
    ``apply_act=False``. A class with a ``forward`` of its own is tried: in evaluation mode it has to compute what its
    statistics and weights say.
    """
    known = isinstance(module, _BatchNorm) or _is_frozen(module)
    if not known or peculiarity(module) not in ('', PARAMETRISED):
        return False
    return is_class(module, _BatchNorm, nn.SyncBatchNorm) or _computes_batch_norm(module)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module looks like torchvision's ``FrozenBatchNorm2d``: all that a normalisation has, as buffers."""
    names = {name for name, _ in module.named_buffers()} - {'num_batches_tracked'}
    return names == {'weight', 'bias', 'running_mean', 'running_var'} and isinstance(
        getattr(module, 'eps', None), float
    )


@torch.no_grad()
def _computes_batch_norm(norm: Any) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or mean.is_meta:
        return False
    spread = torch.tensor(_DEVIATIONS, dtype=mean.dtype, device=mean.device)
    x = (mean[:, None] + (var + norm.eps).sqrt()[:, None] * spread).view(1, len(mean), 2, -1)
    expected = batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)
    found = deepcopy(norm).eval().forward(x)  # no hooks: these are no features of an image
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def check_norm(norm: nn.Module, name: str = 'norm') -> None:
    """Raise ``UnknownModuleError`` unless a module of that name is batch normalisation and nothing else."""
    if not is_batch_norm(norm):
        raise UnknownModuleError(
            f'Only batch normalisation can be condensed, but {name} normalises by {type(norm).__name__}'
            f'{" that " * bool(peculiarity(norm))}{peculiarity(norm)}; build the model with '
            f'norm_layer=torch.nn.BatchNorm2d and nothing more on it, and give an activation as act_layer.'
        )


def gather_norm(norm: nn.Module, index: Tensor) -> nn.Module:
    """Batch normalisation of the gathered channels; SyncBN and the like become plain, what is frozen stays so."""
    check_norm(norm)
    if not isinstance(norm, _BatchNorm):
        frozen: Any = deepcopy(norm)
        for name, buffer in norm.named_buffers():
            setattr(frozen, name, buffer[index] if buffer.ndim else buffer.clone())
        if hasattr(norm, 'num_features'):
            setattr(frozen, 'num_features', index.numel())  # noqa: B010
        return frozen
    reference = norm.weight if norm.affine else norm.running_mean
    gathered = nn.BatchNorm2d(
        index.numel(), norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        device=index.device, dtype=None if reference is None else reference.dtype,
    )  # fmt: skip
    for name, target in [*gathered.named_parameters(), *gathered.named_buffers()]:
        source = getattr(norm, name)
        with torch.no_grad():
            target.copy_(source[index] if source.ndim else source)
        target.requires_grad_(source.requires_grad)
    return gathered.train(norm.training)
