"""Batch normalisation in the exact conversions: telling whether a module is one, and gathering its channels."""

from copy import deepcopy
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

_DEVIATIONS = (-1e3, -10.0, -1.0, -0.1, 0.1, 1.0, 10.0, 1e3)
"""Distances of the trial features from the running mean, in standard deviations."""


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalises by batch statistics and does nothing else.

    SyncBN does, and timm's ``SplitBatchNorm2d``; ``BatchNormAct2d`` only with ``apply_act=False``. A class with a
    ``forward`` of its own is tried: in evaluation mode it has to compute what its statistics and weights say.
    """
    if not isinstance(module, _BatchNorm):
        return False
    return type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or _computes_batch_norm(module)


@torch.no_grad()
def _computes_batch_norm(norm: _BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return False
    spread = torch.tensor(_DEVIATIONS, dtype=mean.dtype, device=mean.device)
    x = (mean[:, None] + (var + norm.eps).sqrt()[:, None] * spread).view(1, len(mean), 2, -1)
    expected = batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)
    found = deepcopy(norm).eval().forward(x)  # no hooks: these are no features of an image
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def gather_norm(norm: nn.Module, index: Tensor) -> nn.BatchNorm2d:
    """Batch normalisation of the gathered channels; any batch normalisation (SyncBN too) becomes a plain one.

    Args:
        norm: normalisation of all channels.
        index: the gathered channels, ``(K,)``.

    Raises:
        TypeError: ``norm`` is no batch normalisation, or more than that.
    """
    if not is_batch_norm(norm):
        raise TypeError(
            f'Only batch normalisation can be condensed, but the layer is normalised by {type(norm).__name__}; build '
            f'the model with norm_layer=torch.nn.BatchNorm2d, and give an activation as act_layer.'
        )
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
