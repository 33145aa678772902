"""The pruning stages that a training did not reach, done at once, and what that changes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d


@dataclass(frozen=True)
class Finished:
    """What finishing a network changed.

    Attributes:
        missing: stages that each layer lacked, by name.
        images: number of images compared.
        agreement: share of positions with the same largest channel as before, with the statistics of the training.
        recalibrated: the same with statistics of the given images; None where none were given.
    """

    missing: dict[str, int]
    images: int
    agreement: float
    recalibrated: Optional[float]


def missing_stages(model: nn.Module) -> dict[str, int]:
    """Pruning stages that layers lack, by name."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d))
    return {name: layer.num_stages - int(layer.stage) for name, layer in layers if not layer.is_finished()}


def say_missing(missing: dict[str, int]) -> str:
    """The missing stages in words, the layers with the most first."""
    most = sorted(missing, key=lambda name: -missing[name])[:3]
    named = ', '.join(f'{missing[name]} of {name}' for name in most)
    return f'{named}{f" and others of {len(missing) - 3} layers" if len(missing) > 3 else ""}'


@torch.no_grad()
def finish(
    model: nn.Module,
    view: Callable[[nn.Module], nn.Module],
    input_size: tuple[int, int, int],
    batches: Sequence[Tensor] = (),
) -> Finished:
    """Prune a network to its last stages, in place, and recalibrate its statistics on images where some are given.

    Args:
        model: in eval mode.
        view: what is compared, made of the model.
        input_size: ``(C, H, W)``.
        batches: images ``(N, C, H, W)`` as the network takes them; random ones are compared where there are none.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    missing, before = missing_stages(model), deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.is_finished():
            layer.prune_to(layer.num_stages)
    compared = batches or list(torch.randn(4, 4, *input_size, generator=torch.Generator().manual_seed(0)))
    agreement = _agreement(view(before), view(model), compared)
    if not batches:
        return Finished(missing, sum(map(len, compared)), agreement, None)
    with _measuring(model):
        for images in batches:
            view(model)(images)
    return Finished(missing, sum(map(len, batches)), agreement, _agreement(view(before), view(model), batches))


def _agreement(one: nn.Module, other: nn.Module, batches: Sequence[Tensor]) -> float:
    same = total = 0
    for images in batches:
        pairs = ((each if isinstance(each, Tensor) else each[-1]).argmax(1) for each in (one(images), other(images)))
        first, second = pairs
        same, total = same + int((first == second).sum()), total + first.numel()
    return same / total


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Let normalisations take the mean statistics of the batches that pass meanwhile; all else stays in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()
