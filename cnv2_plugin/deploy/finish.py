"""The pruning stages that a training did not reach, done at once, and what that changes."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d
from ..models.modes import evaluating
from ..sparsify import recalibrate_norms


def missing_stages(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Pruning stages that layers have done and that they take, of those that lack some, by name."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d))
    return {name: (int(layer.stage), layer.num_stages) for name, layer in layers if not layer.is_finished()}


def say_missing(missing: dict[str, tuple[int, int]]) -> str:
    """The layer that lacks the most stages, in words."""
    name = max(missing, key=lambda name: missing[name][1] - missing[name][0])
    stage, stages = missing[name]
    more = f' ({len(missing) - 1} more layers lack stages)' if len(missing) > 1 else ''
    return f'{name} is at pruning stage {stage} of {stages}{more}'


@torch.no_grad()
def finish(
    model: nn.Module,
    view: Callable[[nn.Module], nn.Module],
    input_size: tuple[int, int, int],
    batches: Sequence[Tensor] = (),
) -> tuple[int, list[float]]:
    """Prune a network in eval mode to its last stages, in place, and recalibrate its statistics on given images.

    ``view`` makes of the model what is compared before and after, on random images where no ``batches`` are given.
    Returns how many images were compared, and the share of positions with the same largest channel as before: with the
    statistics of the training, then with those of the given images.
    """
    before = deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.is_finished():
            layer.prune_to(layer.num_stages)
    compared = batches or list(torch.randn(4, 4, *input_size, generator=torch.Generator().manual_seed(0)))
    shares = [_agreement(view(before), view(model), compared)]
    if batches:
        with evaluating(model):
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            recalibrate_norms(model, batches, forward=view(model))
        shares.append(_agreement(view(before), view(model), batches))
    return sum(map(len, compared)), shares


def _agreement(one: nn.Module, other: nn.Module, batches: Sequence[Tensor]) -> float:
    same = total = 0
    for images in batches:
        pairs = ((each if isinstance(each, Tensor) else each[-1]).argmax(1) for each in (one(images), other(images)))
        first, second = pairs
        same, total = same + int((first == second).sum()), total + first.numel()
    return same / total
