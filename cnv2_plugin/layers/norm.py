"""What the exact conversions take for batch normalisation."""

from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalises by batch statistics (SyncBN too) and does nothing else.

    timm's ``BatchNormAct2d`` is one only with ``apply_act=False`` and no dropout: else its ``forward`` goes on with
    modules of its own.
    """
    if not isinstance(module, _BatchNorm):
        return False
    plain = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return plain or all(isinstance(child, nn.Identity) for child in module.children())
