"""Masked training form -> standard group convolutions."""

from copy import deepcopy
from typing import TypeVar

from torch import nn

from ..layers import GroupSparseConv2d, UnfinishedPruningError

Model = TypeVar('Model', bound=nn.Module)


def condense(model: Model, inplace: bool = False) -> Model:
    """Replace every masked layer of a model by its exact group-convolution form.

    Args:
        model: any module that contains group-sparse layers; parts already condensed stay as they are.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The condensed model.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere; names the layers, and nothing is changed.
    """
    unfinished = [
        f'{name or type(layer).__name__} (stage {int(layer.stage)} of {layer.num_stages})'
        for name, layer in model.named_modules()
        if isinstance(layer, GroupSparseConv2d) and not layer.is_finished()
    ]
    if unfinished:
        shown = ', '.join(unfinished[:4]) + (f' and {len(unfinished) - 4} more' if len(unfinished) > 4 else '')
        raise UnfinishedPruningError(
            f'Pruning is not finished in {shown}; finish the sparsification schedule, or call '
            f'layer.prune_to(layer.num_stages) on each, before condensing.'
        )
    condensed = model if inplace else deepcopy(model)
    for module in condensed.modules():
        if isinstance(module, GroupSparseConv2d):
            module.switch_to_deploy()
    for module in condensed.modules():
        if isinstance(getattr(module, 'deploy', None), bool):
            module.deploy = True
    return condensed
