"""The grouping of a group-sparse 1x1 convolution, and its weight seen by units."""

from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn

from .convolutions import SparseConv2d, unpacked_weight
from .permute import ChannelGather, ChannelScatterSum, ChannelShuffle

GroupedSide = Literal['outputs', 'inputs']


def kept_units(num_units: int, factor: int, stage: int) -> int:
    """Count the units that stay alive in each group once ``stage`` is done.

    ``n - floor(stage * (n - ceil(n / factor)) / (factor - 1))``; where ``factor`` divides ``n`` this is
    ``n / factor`` fewer units a stage (CondenseNet, section 3.2).

    Args:
        num_units: units per group, ``n``.
        factor: condense factor ``C`` or sparse factor ``S``; the last stage is ``factor - 1``.
        stage: number of pruning stages done.
    """
    if factor == 1:
        return num_units
    prunable = num_units - -(-num_units // factor)
    return num_units - min(stage, factor - 1) * prunable // (factor - 1)


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is at most ``at_most``: as many groups as so many channels allow."""
    return max(d for d in range(1, at_most + 1) if number % d == 0)


@dataclass(frozen=True)
class Grouping:
    """How the weight ``(O, I, 1, 1)`` of a 1x1 convolution falls into groups and units.

    A unit is all weights between one group and one channel of the side that is not grouped. With
    ``grouped_side='outputs'`` (learned group convolution) output ``o`` is in group ``o mod G`` and the inputs are the
    units; with ``'inputs'`` (sparse feature reactivation) input ``i`` is in group ``i mod G`` and the outputs are.

    Attributes:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``; divides the channels of the grouped side.
        factor: condense or sparse factor; pruning takes ``factor - 1`` stages.
        grouped_side: ``'outputs'`` or ``'inputs'``.

    Raises:
        ValueError: an argument is out of range; names it and what it takes.
    """

    in_channels: int
    out_channels: int
    groups: int
    factor: int
    grouped_side: GroupedSide

    def __post_init__(self) -> None:
        if self.grouped_side not in ('outputs', 'inputs'):
            raise ValueError(f"grouped_side is {self.grouped_side!r}; it takes 'outputs' or 'inputs'.")
        for name in ('in_channels', 'out_channels', 'groups', 'factor'):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} is {value!r}; it takes a whole number of at least 1.')
        side = 'out_channels' if self.grouped_side == 'outputs' else 'in_channels'
        channels, groups = getattr(self, side), self.groups
        if channels % groups:
            divisors = [d for d in range(1, channels + 1) if channels % d == 0]
            nearest = sorted(sorted(divisors, key=lambda d: abs(d - groups))[:4])
            raise ValueError(
                f'groups={groups} does not divide {side}={channels}; groups that do: {", ".join(map(str, nearest))}, '
                f'or make {side} a multiple of {groups}, such as {channels + groups - channels % groups}.'
            )

    @property
    def num_units(self) -> int:
        """Units in each group: the channels of the side that is not grouped."""
        return self.in_channels if self.grouped_side == 'outputs' else self.out_channels

    @property
    def num_stages(self) -> int:
        """Stages until pruning is finished."""
        return self.factor - 1

    def kept_per_group(self, stage: Optional[int] = None) -> int:
        """Count the units alive in each group after ``stage``, by default after the last one."""
        return kept_units(self.num_units, self.factor, self.num_stages if stage is None else stage)

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View a tensor of the weight's shape as ``(groups, units, members of the unit)``."""
        matrix = tensor.flatten(1)
        if self.grouped_side == 'outputs':
            return matrix.unflatten(0, (-1, self.groups)).permute(1, 2, 0)
        return matrix.unflatten(1, (-1, self.groups)).permute(2, 0, 1)

    def kept_index(self, mask: Tensor) -> Tensor:
        """Units that a mask ``(O, I, 1, 1)`` keeps, group by group in ascending order: int64 ``(kept,)``."""
        return self.by_unit(mask)[..., 0].nonzero()[:, 1].contiguous()

    def stage_of(self, mask: Tensor, said: int) -> int:
        """The stage that a mask ``(O, I, 1, 1)`` is at: ``said`` where that fits, otherwise the last one that does."""
        kept, size = int(mask.sum()) * self.num_units, mask.numel()
        fitting = [s for s in range(self.num_stages + 1) if self.kept_per_group(s) * size == kept]
        return said if said in fitting else max(fitting, default=said)

    def next_mask(self, mask: Tensor, importance: Tensor, stage: int) -> Tensor:
        """The mask after one more pruning stage.

        In each group, the units with the least importance among those alive are pruned; of equal ones the lower channel
        goes first (CondenseNet, section 3.2).

        Args:
            mask: bool ``(O, I, 1, 1)`` after the stage before; is not changed.
            importance: of each unit, ``(groups, units)``.
            stage: the stage to do.
        """
        mask = mask.clone()
        units = self.by_unit(mask)
        ranked = importance.masked_fill(~units[..., 0].to(importance.device), float('inf')).argsort(dim=1, stable=True)
        weakest = ranked[:, : self.kept_per_group(stage - 1) - self.kept_per_group(stage)].to(mask.device)
        units[torch.arange(self.groups, device=mask.device)[:, None], weakest] = False
        return mask

    def check_importance(self, importance: Tensor) -> None:
        """Raise a ValueError unless there is one finite value for each unit."""
        if tuple(importance.shape) != (self.groups, self.num_units):
            raise ValueError(
                f'importance has the shape {tuple(importance.shape)}; this layer takes one value for each unit, '
                f'(groups, units) = {(self.groups, self.num_units)}.'
            )
        if not bool(torch.isfinite(importance).all()):
            raise ValueError('importance holds NaN or infinite values; no mask was changed: give finite ones.')

    def pack(self, weight: Tensor, kept: Tensor) -> Tensor:
        """Take the surviving entries of a tensor of the weight's shape, as the weight of a group convolution.

        Args:
            weight: ``(O, I, 1, 1)``.
            kept: units of each group, ``(G * K,)`` with ``K`` units a group.

        Returns:
            ``(O, K, 1, 1)`` over outputs, ``(G * K, I / G, 1, 1)`` over inputs; rows are in the order of the groups.
        """
        units = self.by_unit(weight)
        rows = units.gather(1, kept.view(self.groups, -1, 1).expand(-1, -1, units.size(2)))
        if self.grouped_side == 'outputs':
            rows = rows.transpose(1, 2)
        return rows.flatten(0, 1)[..., None, None]

    def unpack(self, packed: Tensor, kept: Tensor) -> Tensor:
        """The inverse of :meth:`pack`; pruned entries are 0."""
        return unpacked_weight(packed, kept, self.groups, self.num_units, self.grouped_side)

    def is_packed(self, weight: Tensor) -> bool:
        """Whether a weight has the shape of a packed one, and not that of a masked one."""
        inputs, outputs = self._surviving()
        packed, masked = (outputs, inputs // self.groups, 1, 1), (self.out_channels, self.in_channels, 1, 1)
        return weight.shape == packed != masked

    def group_conv(self, **options: Any) -> nn.Conv2d:
        """A 1x1 group convolution over the units that are left in the end.

        Args:
            **options: ``stride``, ``dilation``, ``bias``, ``device`` and ``dtype`` of the convolution.
        """
        return nn.Conv2d(*self._surviving(), 1, groups=self.groups, **options)

    def sparse_conv(self, packed: bool, **options: Any) -> SparseConv2d:
        """The convolution of a masked or packed layer; options as of :meth:`group_conv`."""
        channels = self._surviving() if packed else (self.in_channels, self.out_channels)
        return SparseConv2d(*channels, self.groups, self.num_units, self.grouped_side, packed, **options)

    def _surviving(self) -> tuple[int, int]:
        """Inputs and outputs of the group convolution over the units that are left in the end."""
        kept = self.groups * self.kept_per_group()
        return (kept, self.out_channels) if self.grouped_side == 'outputs' else (self.in_channels, kept)

    def gather(self, kept: Tensor) -> nn.Module:
        """Bring the inputs into the order of :meth:`group_conv`: those of every group, or group by group."""
        if self.grouped_side == 'outputs':
            return ChannelGather(kept)
        return ChannelShuffle(self.in_channels // self.groups)

    def scatter(self, kept: Tensor) -> nn.Module:
        """Bring the outputs of :meth:`group_conv` back: shuffle them, or sum the rows of one output."""
        if self.grouped_side == 'outputs':
            return ChannelShuffle(self.groups)
        return ChannelScatterSum(kept, self.out_channels)
