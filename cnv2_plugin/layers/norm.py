"""What the exact conversions take for batch normalisation."""

from copy import deepcopy
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

_DEVIATIONS = (-1e3, -10.0, -1.0, -0.1, 0.1, 1.0, 10.0, 1e3)
"""How far the features that a norm is tried on lie from its running mean."""


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
