"""Channel bookkeeping of the condensed layers: gather before, sum-scatter after a group convolution."""

import torch
from torch import Tensor, nn


class ChannelGather(nn.Module):
    """Select input channels by index; a channel may be selected several times.

    Args:
        index: int64 tensor ``(K,)`` with the selected channels.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer('index', index.clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, K, H, W)``."""
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        return f'selected={self.index.numel()}'


class ChannelScatterSum(nn.Module):
    """The index layer: put every row into its channel, sum the rows of one channel, leave the others zero.

    Equal to multiplying by a ``(K, C)`` 0/1 matrix, at the cost of one addition an element.

    Args:
        index: int64 tensor ``(K,)``, the channel that each row belongs to.
        out_channels: number of channels ``C`` of the result.
    """

    index: Tensor

    def __init__(self, index: Tensor, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.register_buffer('index', index.clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, K, H, W)`` to ``(N, C, H, W)``."""
        zeros = x.new_zeros([x.size(0), self.out_channels, x.size(2), x.size(3)])
        return zeros.index_add(1, self.index, x)

    def extra_repr(self) -> str:
        return f'rows={self.index.numel()}, out_channels={self.out_channels}'


class ViewedChannelShuffle(nn.ChannelShuffle):
    """``nn.ChannelShuffle`` by views: PyTorch 2.4 has no gradient of the operator, 2.6 has."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


ChannelShuffle = nn.ChannelShuffle if torch.__version__ >= '2.6' else ViewedChannelShuffle
