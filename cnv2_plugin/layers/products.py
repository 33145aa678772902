"""Products with the surviving weights of a group-sparse 1x1 convolution, for training.

Channels keep their original order, so nothing around them changes. Contiguous and channels-last tensors each have their
own product; where a group is so narrow that moving its channels costs more than it saves, the surviving weights are put
into a dense weight for the time of the convolution.
"""

import torch
from torch import Tensor

_CONTIGUOUS_WIDTH = 4
_CHANNELS_LAST_WIDTH = {'outputs': 32, 'inputs': 16}


def prefer_group_product(columns: int, grouped_side: str, channels_last: bool) -> bool:
    """Whether a product per group is faster than a dense convolution (measured on CPU, forward and backward).

    Args:
        columns: inputs of each group.
        grouped_side: which side is grouped.
        channels_last: memory format of the features.
    """
    return columns >= (_CHANNELS_LAST_WIDTH[grouped_side] if channels_last else _CONTIGUOUS_WIDTH)


def is_channels_last(x: Tensor) -> bool:
    """Whether features ``(N, C, H, W)`` are stored position by position."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def read_selected(x: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """Learned group convolution of features ``(N, I, H, W)``: every group reads its selected inputs.

    Args:
        x: features.
        weight: ``(G, O / G, K)``; output ``o`` is member ``o // G`` of group ``o mod G``.
        kept: the inputs of each group, ``(G * K,)``.
    """
    n, h, w = x.size(0), x.size(2), x.size(3)
    groups, members, columns = weight.shape
    if is_channels_last(x):
        rows = x.permute(0, 2, 3, 1).reshape(n * h * w, -1).index_select(1, kept)
        y = torch.bmm(rows.unflatten(1, (groups, columns)).transpose(0, 1), weight.transpose(1, 2))
        return y.permute(1, 2, 0).reshape(n, h, w, members * groups).permute(0, 3, 1, 2)
    x = x.index_select(1, kept).reshape(n, groups, columns, h * w)
    y = torch.matmul(weight, x)
    return y.transpose(1, 2).reshape(n, members * groups, h, w)


def update_selected(x: Tensor, weight: Tensor, kept: Tensor, out_channels: int) -> Tensor:
    """Sparse feature reactivation from features ``(N, I, H, W)``: every group updates its selected outputs.

    Args:
        x: features; input ``i`` is in group ``i mod G``.
        weight: ``(G, K, I / G)``.
        kept: the outputs of each group, ``(G * K,)``.
        out_channels: channels of the result.
    """
    n, h, w = x.size(0), x.size(2), x.size(3)
    groups, rows, columns = weight.shape
    if is_channels_last(x):
        x = x.permute(0, 2, 3, 1).reshape(n * h * w, columns, groups).permute(2, 0, 1)
        y = torch.bmm(x, weight.transpose(1, 2)).transpose(0, 1).reshape(n * h * w, groups * rows)
        y = y.new_zeros([n * h * w, out_channels]).index_add_(1, kept, y)
        return y.reshape(n, h, w, out_channels).permute(0, 3, 1, 2)
    x = x.reshape(n, columns, groups, h * w).transpose(1, 2)
    y = torch.matmul(weight, x).reshape(n, groups * rows, h, w)
    return y.new_zeros([n, out_channels, h, w]).index_add_(1, kept, y)
