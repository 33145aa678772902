"""Sees through the wrappers that trainers put around models, optimisers and averaged copies."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

_WRAPPER_PREFIXES = ('_orig_mod', 'module')
_SHARDING_WRAPPERS = ('FullyShardedDataParallel', 'DeepSpeedEngine')


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
