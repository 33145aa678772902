"""Finds the model that an optimiser trains, its averages, and what trainers put wrappers around."""

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from ..layers import GroupSparseConv2d
from ..layers.sparse import LIVING

AVERAGES = ('AveragedModel', 'ModelEma', 'ModelEmaV2', 'ModelEmaV3')
"""Classes that hold an averaged copy of a model: PyTorch's (Lightning uses it too) and timm's."""
_WRAPPER_PREFIXES = ('_orig_mod', 'module')
_SHARDING_WRAPPERS = ('FullyShardedDataParallel', 'DeepSpeedEngine')


def model_of(optimizer: torch.optim.Optimizer) -> Optional[nn.Module]:
    """Return the model whose sparse layers an optimiser trains, without wrappers; None where there is none.

    It is the smallest of the modules around all these layers that hold the most trained parameters; a list of the
    layers where there is none around them.
    """
    trained = {id(p): place for place, p in enumerate(p for g in optimizer.param_groups for p in g['params'])}
    layers = {trained.get(id(layer.conv.weight)): layer for layer in LIVING if not layer.deploy}
    ours = [layers[place] for place in sorted(place for place in layers if place is not None)]
    if not ours:
        return None
    candidates: dict[tuple[int, int], nn.Module] = {}
    for module in _living(lambda kind: issubclass(kind, nn.Module)):
        inside = list(module.modules()) if module.__dict__.get('_modules') else []
        if set(ours) <= set(inside):
            held = sum(id(parameter) in trained for parameter in module.parameters())
            candidates[held, -len(inside)] = module
    return candidates[max(candidates)] if candidates else nn.ModuleList(ours)


def averages_of(model: nn.Module) -> list[nn.Module]:
    """Return the copies of a model inside ``AveragedModel``, ``ModelEmaV2``, ``ModelEmaV3`` and the like."""
    ours = _sparse_layers(model)
    if not any(layer.grouping == ours[0].grouping for layer in set(LIVING) - set(ours)):
        return []
    copies = [averaged_copy(average) for average in _living(lambda kind: has_base(kind, AVERAGES))]
    return [copy for copy in copies if same_sparse_layers(model, copy) and _any_alike(model, copy)]


def copy_pruning(source: nn.Module, target: nn.Module) -> None:
    """Give the sparse layers of ``target`` the masks and stages of ``source``, a model of the same structure."""
    for ours, theirs in zip(_sparse_layers(source), _sparse_layers(target)):
        theirs.take_pruning(ours)


def same_sparse_layers(model: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models have sparse layers of the same shapes in the same order."""
    ours, theirs = ([layer.mask.shape for layer in _sparse_layers(m)] for m in (model, other))
    return ours == theirs


def likeness(layer: GroupSparseConv2d, other: GroupSparseConv2d) -> float:
    """Cosine between the weights of two layers of one shape: near 1 for averages, near 0 for independent ones."""
    ours, theirs = (one.conv.weight.detach().flatten().float() for one in (layer, other))
    return float(cosine_similarity(ours, theirs.to(ours.device), 0))


def _any_alike(model: nn.Module, copy: nn.Module) -> bool:
    pairs = zip(_sparse_layers(model), _sparse_layers(copy))
    return any(likeness(ours, theirs) > 0.5 for ours, theirs in pairs if ours.state == theirs.state)


def _sparse_layers(model: nn.Module) -> list[GroupSparseConv2d]:
    return [m for m in model.modules() if isinstance(m, GroupSparseConv2d) and not m.deploy]


def _living(wanted: Callable[[type], bool]) -> list[Any]:
    """The objects of the process whose class is wanted; few classes are asked about, as there are many objects."""
    things = gc.get_objects()
    kinds = {kind for kind in set(map(type, things)) if wanted(kind)}
    return [thing for thing in things if type(thing) in kinds] if kinds else []


def plain_name(name: str) -> str:
    """Strip from a module's name what DDP, averaged models and torch.compile put before it."""
    return '.'.join(part for part in name.split('.') if part not in _WRAPPER_PREFIXES)


def averaged_copy(average: Any) -> nn.Module:
    """Return the module inside ``AveragedModel``, ``ModelEmaV3`` and the like; another module is the copy itself."""
    inside = getattr(average, 'module', None) or getattr(average, 'ema', None)
    return inside if isinstance(inside, nn.Module) else average


def as_list(given: Any) -> list[Any]:
    """Return nothing, one or several models or optimisers as a list."""
    if given is None:
        return []
    single = isinstance(given, nn.Module) or not isinstance(given, Iterable)
    return [given] if single else list(given)


def optimizers_in(given: Any) -> list[Any]:
    """List one or several optimisers and all that they wrap, by whatever name, outermost first."""
    found: list[Any] = []
    queue = as_list(given)
    while queue:
        current = queue.pop(0)
        if any(current is seen for seen in found):
            continue
        found.append(current)
        for value in getattr(current, '__dict__', {}).values():
            several = [*value.values()] if isinstance(value, Mapping) else value
            inside = several if isinstance(several, (list, tuple)) else (several,)  # not tensors, such as grad_scale
            queue.extend(v for v in inside if hasattr(v, 'param_groups'))
    return found


def has_base(kind: type, names: tuple[str, ...]) -> bool:
    """Tell whether a class or one that it is made from has one of these names."""
    return any(base.__name__ in names for base in kind.__mro__)


def refuse_sharded(model: nn.Module) -> None:
    """Raise where FSDP or DeepSpeed leaves no process whole weights: what is least important could not be told."""
    wrapped = (type(m).__name__ for m in model.modules() if has_base(type(m), _SHARDING_WRAPPERS))
    shards = (name for name, p in model.named_parameters() if hasattr(p, 'placements') or hasattr(p, 'ds_id'))
    sharded = next(wrapped, None) or next(shards, None)
    if sharded:
        raise RuntimeError(
            f'The parameters are sharded over processes ({sharded}), but pruning compares whole weights; train with '
            f'DistributedDataParallel (OpenMMLab: MMDistributedDataParallel) instead.'
        )
