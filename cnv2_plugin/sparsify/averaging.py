"""Averaged copies of a model (EMA, SWA) get the pruning of the model itself."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..layers import GroupSparseConv2d

AVERAGES = ('AveragedModel', 'ModelEma', 'ModelEmaV2', 'ModelEmaV3')
"""Classes that hold an averaged copy: PyTorch's (Lightning uses it too) and timm's."""


def copy_pruning(source: nn.Module, target: nn.Module) -> None:
    """Give the sparse layers of ``target`` the masks and stages of ``source``, a model of the same structure."""
    for ours, theirs in zip(_sparse_layers(source), _sparse_layers(target)):
        theirs.mask.copy_(ours.mask)
        theirs.stage.copy_(ours.stage)


def averaged_copy(average: Any) -> nn.Module:
    """The module inside ``AveragedModel``, ``ModelEmaV3`` and their like; another module is the copy itself."""
    inside = getattr(average, 'module', None) or getattr(average, 'ema', None)
    return inside if isinstance(inside, nn.Module) else average


def check_copies(model: nn.Module, copies: Iterable[nn.Module]) -> None:
    """Raise where a copy has other sparse layers than the model.

    Raises:
        ValueError: so it is; names the class.
    """
    shapes = [layer.mask.shape for layer in _sparse_layers(model)]
    for copy in copies:
        if [layer.mask.shape for layer in _sparse_layers(copy)] != shapes:
            raise ValueError(
                f'the averaged {type(copy).__name__} has other sparse layers than the model; give the average of this '
                f'model.'
            )


def _sparse_layers(model: nn.Module) -> list[GroupSparseConv2d]:
    return [m for m in model.modules() if isinstance(m, GroupSparseConv2d) and not m.deploy]
