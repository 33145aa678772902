"""Finds models among the living objects of the process, for scripts that hand over none."""

import gc
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import nn

from ..layers import GroupSparseConv2d
from .averaging import AVERAGES, averaged_copy


def sparse_model_of(optimizer: torch.optim.Optimizer) -> Optional[nn.Module]:
    """The model whose sparse layers an optimiser trains, without wrappers; None where there is none.

    Of all living modules that hold the most of the trained parameters, the one with the fewest modules is taken: the
    model inside DDP, ``torch.compile`` and training tasks.

    Args:
        optimizer: as made by the script.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}

    def is_trained(module: nn.Module) -> bool:
        return isinstance(module, GroupSparseConv2d) and not module.deploy and id(module.conv.weight) in trained

    if not any(map(is_trained, _living(lambda kind: issubclass(kind, GroupSparseConv2d)))):
        return None
    candidates = {}
    for module in _living(lambda kind: issubclass(kind, nn.Module)):
        modules = list(module.modules())
        if any(map(is_trained, modules)):
            held = sum(id(parameter) in trained for parameter in module.parameters())
            candidates[held, -len(modules)] = module
    return candidates[max(candidates)]


def averages_of(model: nn.Module) -> list[nn.Module]:
    """Copies of a model inside living ``AveragedModel``, ``ModelEma``, ``ModelEmaV2`` and ``ModelEmaV3``."""
    shape = _sparse_shape(model)
    averages = _living(lambda kind: any(base.__name__ in AVERAGES for base in kind.__mro__))
    copies = [copy for copy in map(averaged_copy, averages) if isinstance(copy, nn.Module)]
    return [copy for copy in copies if _sparse_shape(copy) == shape]


def _sparse_shape(model: nn.Module) -> list[torch.Size]:
    return [m.mask.shape for m in model.modules() if isinstance(m, GroupSparseConv2d) and not m.deploy]


def _living(wanted: Callable[[type], bool]) -> list[Any]:
    """Objects of the types that are wanted; each type is asked about once."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if wanted(kind)}
    return [thing for thing in objects if type(thing) in kinds]
