"""Channel bookkeeping of the condensed layers: gather before, sum-scatter after a group convolution."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def index_fault(name: str, index: Optional[Tensor], channels: int) -> str:
    """Say that an index names channels that are not there; '' where it does not, is empty or has no values."""
    if index is None or index.is_meta or index.numel() == 0:
        return ''
    low, high = int(index.min()), int(index.max())
    return '' if 0 <= low <= high < channels else f'{name} must lie in 0 to {channels - 1}, but holds {low} to {high}.'


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
        if not torch.jit.is_scripting():
            if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
                return self._as_gathers(x)
        zeros = x.new_zeros([x.size(0), self.out_channels, x.size(2), x.size(3)])
        return zeros.index_add(1, self.index, x)

    def _as_gathers(self, x: Tensor) -> Tensor:
        """The same for TorchScript's ONNX exporter, whose ``index_add`` keeps one of several rows of a channel."""
        rows: list[list[int]] = [[] for _ in range(self.out_channels)]
        for row, channel in enumerate(self.index.tolist()):
            rows[channel].append(row)
        padded, levels = torch.cat((x, torch.zeros_like(x[:, :1])), 1), range(max(1, *map(len, rows)))
        table = [[of_one[level] if level < len(of_one) else self.index.numel() for of_one in rows] for level in levels]
        first, *others = (padded.index_select(1, torch.tensor(chosen, device=x.device)) for chosen in table)
        return sum(others, first)

    def extra_repr(self) -> str:
        return f'rows={self.index.numel()}, out_channels={self.out_channels}'


def shuffle_by_views(x: Tensor, groups: int) -> Tensor:
    """Shuffle the channels of ``(N, C, H, W)`` by reshaping."""
    n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ViewedChannelShuffle(nn.ChannelShuffle):
    """``nn.ChannelShuffle`` by views: PyTorch 2.4 has no gradient of the operator, 2.6 has."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        return shuffle_by_views(x, self.groups)


class ExportedChannelShuffle(nn.ChannelShuffle):
    """``nn.ChannelShuffle``, by views where TorchScript's ONNX exporter traces it, which does not know the operator."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        if not torch.jit.is_scripting():
            if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
                return shuffle_by_views(x, self.groups)
        return F.channel_shuffle(x, self.groups)


ChannelShuffle = ExportedChannelShuffle if torch.__version__ >= '2.6' else ViewedChannelShuffle
