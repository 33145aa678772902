"""The shape of a group-sparse 1x1 convolution, and its tensors seen by units: what every form of it shares."""

from typing import Optional

from torch import Tensor

from .units import by_unit, kept_index, kept_units, pack, unpack


class Grouped:
    """Shape and units of a group-sparse layer, see :mod:`.units`.

    Attributes:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``.
        factor: condense or sparse factor.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.
        num_stages: stages until pruning is finished.
        deploy: the layer is condensed.
        packed: the training form holds the surviving weights only.
        mask: bool ``(O, I, 1, 1)`` (training form only).
        stage: pruning stages done, int64 scalar (training form only).
        kept: units of each group ``(G * K,)`` while packed, else empty (training form only).
    """

    in_channels: int
    out_channels: int
    groups: int
    factor: int
    grouped_side: str
    num_stages: int
    deploy: bool
    packed: bool
    mask: Tensor
    stage: Tensor
    kept: Tensor

    def num_units(self) -> int:
        """Units in each group: the channels of the side that is not grouped."""
        return self.in_channels if self.grouped_side == 'outputs' else self.out_channels

    def kept_per_group(self, stage: Optional[int] = None) -> int:
        """Units alive in each group after ``stage``, by default after the last one."""
        return kept_units(self.num_units(), self.factor, self.num_stages if stage is None else stage)

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View a tensor of the weight's shape as ``(groups, units, members of the unit)``."""
        return by_unit(tensor, self.groups, self.grouped_side)

    def is_finished(self) -> bool:
        """Whether the last pruning stage is done; a deployed layer is finished."""
        return self.deploy or int(self.stage) >= self.num_stages

    def kept_fraction(self) -> float:
        """Share of the weights that are not pruned."""
        if self.deploy:
            return self.kept_per_group() / self.num_units()
        return self.mask.float().mean().item()

    def kept_index(self, mask: Optional[Tensor] = None) -> Tensor:
        """Kept units of a mask, by default the own, group by group in ascending order: int64 ``(kept,)``."""
        return kept_index(self.mask if mask is None else mask, self.groups, self.grouped_side)

    def pack_weight(self, weight: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Surviving entries of a tensor of the weight's shape, as the weight of the group convolution.

        Args:
            weight: the weight, or an optimiser's average of it, ``(O, I, 1, 1)``.
            mask: of a finished pruning; by default the layer's own.
        """
        return pack(weight, self.kept_index(mask), self.groups, self.grouped_side)

    def unpack_weight(self, packed: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """The inverse of :meth:`pack_weight`; pruned entries are 0."""
        kept = self.kept if self.packed and mask is None else self.kept_index(mask)
        return unpack(packed, kept, self.groups, self.grouped_side, self.num_units())
