"""Finds the model that an optimiser trains, for scripts that hand over none."""

import weakref
from collections.abc import Iterator
from typing import Optional

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..layers.sparse import LIVING
from .attach import same_sparse_layers
from .wrappers import averaged_copy, is_average


class ModelFinder:
    """Remembers, by weak references, the modules that other modules are put into, from its making to :meth:`close`."""

    def __init__(self) -> None:
        self._parents: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._hook = register_module_module_registration_hook(self._remember)

    def close(self) -> None:
        """Remember no more."""
        self._hook.remove()

    def model_of(self, optimizer: torch.optim.Optimizer) -> Optional[nn.Module]:
        """Return the model whose sparse layers an optimiser trains, without wrappers; None where there is none.

        The smallest of the modules around all these layers that hold the most trained parameters; a list of the layers
        where none is known, as in a model that was copied or unpickled.
        """
        trained = {id(p): place for place, p in enumerate(p for g in optimizer.param_groups for p in g['params'])}
        layers = {trained.get(id(layer.conv.weight)): layer for layer in LIVING if not layer.deploy}
        ours = [layers[place] for place in sorted(place for place in layers if place is not None)]
        if not ours:
            return None
        candidates: dict[tuple[int, int], nn.Module] = {}
        for module in self._modules():
            inside = list(module.modules())
            if set(ours) <= set(inside):
                held = sum(id(parameter) in trained for parameter in module.parameters())
                candidates[held, -len(inside)] = module
        return candidates[max(candidates)] if candidates else nn.ModuleList(ours)

    def averages_of(self, model: nn.Module) -> list[nn.Module]:
        """Return the copies of a model inside ``AveragedModel``, ``ModelEmaV2``, ``ModelEmaV3`` and the like."""
        copies = [averaged_copy(module) for module in self._modules() if is_average(module)]
        return [copy for copy in copies if same_sparse_layers(model, copy)]

    def _remember(self, parent: nn.Module, name: str, child: Optional[nn.Module]) -> None:
        self._parents.add(parent)

    def _modules(self) -> Iterator[nn.Module]:
        """Modules with others inside, each once."""
        seen = set()
        for parent in list(self._parents):
            for module in parent.modules():
                if module not in seen and module._modules:
                    seen.add(module)
                    yield module
