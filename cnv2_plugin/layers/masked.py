"""The masked form of a group-sparse 1x1 convolution: all weights are there, the mask hides the pruned ones.

How it is pruned stands here too: units go stage by stage, weakest first (CondenseNet, section 3.2).
"""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .units import by_unit, kept_units


class MaskedForm(nn.Module):
    """Convolve with the weight times the mask.

    Args:
        groups: number of groups ``G``.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.
    """

    def __init__(self, groups: int, grouped_side: str) -> None:
        super().__init__()
        self.groups = groups
        self.grouped_side = grouped_side

    def forward(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], stride: tuple[int, int], mask: Tensor, kept: Tensor
    ) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H', W')``.

        Args:
            x: features.
            weight: ``(O, I, 1, 1)``.
            bias: ``(O,)`` or None.
            stride: of the convolution.
            mask: bool ``(O, I, 1, 1)``.
            kept: not read; the packed form needs it.
        """
        return F.conv2d(x, self.weight(weight, mask, kept), bias, stride)

    def weight(self, weight: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        """The weight times the mask, ``(O, I, 1, 1)``; gradients reach surviving weights only.

        All members of a unit share one bit, so ``1 / G`` of the bits of a row or column are read.
        """
        if self.grouped_side == 'inputs':
            alive = mask[:, None, : self.groups].flatten(2).to(weight.dtype)
            return (weight.reshape(weight.size(0), -1, self.groups) * alive).reshape(weight.shape)
        alive = mask[: self.groups].flatten().to(weight.dtype)
        return (weight.reshape(-1, alive.numel()) * alive).reshape(weight.shape)


def pruned_mask(
    mask: Tensor,
    weight: Tensor,
    groups: int,
    grouped_side: str,
    factor: int,
    stages: range,
    importance: Optional[Tensor],
) -> Tensor:
    """The mask after some more pruning stages.

    In each stage and group, the units with the least importance among those alive are pruned; of equal ones the lower
    channel goes first.

    Args:
        mask: bool ``(O, I, 1, 1)`` before; is not changed.
        weight: ``(O, I, 1, 1)``.
        groups: number of groups ``G``.
        grouped_side: which side is grouped.
        factor: condense or sparse factor.
        stages: the stages to do, one after the other.
        importance: of each unit, ``(G, units)``; by default the L1 norm of the unit's weights (CondenseNet,
            section 3.2).
    """
    mask = mask.clone()
    alive = by_unit(mask, groups, grouped_side)
    if importance is None:
        importance = by_unit((weight.detach() * mask).to('cpu', torch.float64), groups, grouped_side).abs().sum(2)
    importance = importance.detach().to('cpu', torch.float64)
    for stage in stages:
        ranked = importance.masked_fill(~alive[..., 0].cpu(), float('inf')).argsort(dim=1, stable=True)
        excess = kept_units(alive.size(1), factor, stage - 1) - kept_units(alive.size(1), factor, stage)
        weakest = ranked[:, :excess].to(mask.device)
        alive[torch.arange(groups, device=mask.device)[:, None], weakest] = False
    return mask


def group_lasso(weight: Tensor, groups: int, grouped_side: str) -> Tensor:
    """Sum over units of the L2 norm of a masked weight ``(O, I, 1, 1)`` (CondenseNet, section 3.2)."""
    return by_unit(weight, groups, grouped_side).square().sum(2).clamp(min=1e-6).sqrt().sum()
