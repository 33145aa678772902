"""The packed form of a group-sparse 1x1 convolution: only the surviving weights are there, and they go on training."""

from typing import Optional

from torch import Tensor, nn
from torch.nn import functional as F

from .products import is_channels_last, prefer_group_product, read_selected, update_selected
from .units import unpack


class PackedForm(nn.Module):
    """Convolve with the surviving weights, from and to the original order of channels.

    Args:
        groups: number of groups ``G``.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.
        num_units: channels of the side that is not grouped.
    """

    def __init__(self, groups: int, grouped_side: str, num_units: int) -> None:
        super().__init__()
        self.groups = groups
        self.grouped_side = grouped_side
        self.num_units = num_units

    def forward(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor], stride: tuple[int, int], mask: Tensor, kept: Tensor
    ) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H', W')``.

        Args:
            x: features.
            weight: ``(O, K, 1, 1)`` over outputs, ``(G * K, I / G, 1, 1)`` over inputs, see :func:`.units.pack`.
            bias: ``(O,)`` or None.
            stride: of the convolution.
            mask: bool ``(O, I, 1, 1)``, not read; the masked form needs it.
            kept: units of each group, ``(G * K,)``.
        """
        if not prefer_group_product(weight.size(1), self.grouped_side, is_channels_last(x)):
            return F.conv2d(x, self.weight(weight, mask, kept), bias, stride)
        if stride[0] > 1 or stride[1] > 1:
            x = x[:, :, :: stride[0], :: stride[1]]
        weight = weight.flatten(1).unflatten(0, (self.groups, -1))
        if self.grouped_side == 'inputs':
            return update_selected(x, weight, kept, self.num_units)
        y = read_selected(x, weight, kept)
        return y if bias is None else y + bias[:, None, None]

    def weight(self, weight: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        """The weight ``(O, I, 1, 1)`` with pruned entries zero."""
        return unpack(weight, kept, self.groups, self.grouped_side, self.num_units)
