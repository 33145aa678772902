"""A graph as a PyTorch module: for eager use, ``torch.compile``, ``torch.export`` and every exporter behind them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.types import Device

from ..layers import ChannelGather, ChannelScatterSum, SqueezeExcite
from ..layers.convolutions import convolutions_last
from . import ops
from .ir import Graph, Node

fx.wrap('folded_avg_pool')

TINY = 1e-30
"""Stands for an ``eps`` of 0, which some versions of PyTorch refuse; 1 and this are 1 in every precision."""


class ChannelSlice(nn.Module):
    """Neighbouring channels ``start`` to ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, stop - start, H, W)``."""
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f'{self.start}, {self.stop}'


class PlainConv(nn.Module):
    """A 1x1 convolution computed on ``(N, C, HW)``."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)``."""
        height, width = x.shape[2:]
        y = self.conv(x.reshape(-1, self.conv.in_channels, height * width))
        return y.reshape(-1, self.conv.out_channels, height, width)


def folded_avg_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Average pooling of ``(N, C, H, W)`` with bands of rows as further channels."""
    channels, height, width = x.shape[1:]
    known = type(height) is int  # not where a graph is made for any height
    bands = ops.AveragePool(size, stride).folding(channels, height) if known else 1
    folded = x.reshape(-1, channels * bands, height // bands, width) if bands > 1 else x
    y = F.avg_pool2d(folded, size, stride)
    return y.reshape(-1, channels, y.size(2) * bands, y.size(3)) if bands > 1 else y


class FoldedAvgPool2d(nn.Module):
    """Average pooling with bands of rows as further channels."""

    def __init__(self, pool: ops.AveragePool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H', W')``."""
        return folded_avg_pool(x, self.pool.size, self.pool.stride)

    def extra_repr(self) -> str:
        return f'{self.pool.size}, {self.pool.stride}'


class Sum(nn.Module):
    """The sum of two maps."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add two ``(N, C, H, W)``."""
        return x + y


class ConcatChannels(nn.Module):
    """The channels of several maps one after the other."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Map several ``(N, C_i, H, W)`` to ``(N, sum C_i, H, W)``."""
        return torch.cat(maps, 1)


class PooledSqueezeExcite(nn.Module):
    """Squeeze-and-excitation that stays a map ``(N, C, 1, 1)`` all along: 1x1 convolutions between pool and gate."""

    def __init__(self, block: SqueezeExcite) -> None:
        super().__init__()
        self.fc1, self.fc2 = _as_conv(block.fc1), _as_conv(block.fc2)
        self.act, self.gate = nn.ReLU(), block.gate

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


def _as_conv(linear: nn.Linear) -> nn.Conv2d:
    weight = linear.weight.detach()
    sizes = linear.in_features, linear.out_features, 1
    return _filled(nn.Conv2d, *sizes, weight=weight, bias=linear.bias, device=weight.device, dtype=weight.dtype)


def _filled(kind: type, *args: Any, weight: Tensor, bias: Optional[Tensor], **options: Any) -> Any:
    """A layer of a kind with given constants."""
    layer: Any = skip_init(kind, *args, bias=bias is not None, **options)
    with torch.no_grad():
        layer.weight.copy_(weight.view(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


class Operations(nn.ModuleList):
    """Modules that are called one by one, not in a chain."""

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules, convolutions last."""
        return convolutions_last(super().named_children())


class LoweredGraph(nn.Module):
    """Runs the operations of a graph one after the other, with constants of a type on a device.

    Attributes:
        operations: one module for every operation.
        steps: for every operation the values it reads; value 0 is the input, value ``i + 1`` the result of
            operation ``i``.
        choices: implementation of every layer that offers several, filled in by :func:`cnv2_plugin.deploy.lower`.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype = torch.float32, device: Device = 'cpu') -> None:
        super().__init__()
        self.operations = Operations()
        self.steps: list[tuple[int, ...]] = []
        self.choices: dict[str, str] = {}
        place: dict[int, int] = {}
        for node in graph.ordered():
            if isinstance(node.op, ops.Input):
                place[node.id] = 0
                continue
            self.operations.append(_module(graph, node, dtype, device))
            self.steps.append(tuple(place[i] for i in node.inputs))
            place[node.id] = len(self.operations)
        self.output = place[graph.output]
        last_use = {value: step for step, values in enumerate(self.steps) for value in values}
        self.released = [
            tuple(v for v in set(values) if last_use[v] == step and v != self.output)
            for step, values in enumerate(self.steps)
        ]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'LoweredGraph':
        """Stay in eval mode: normalisations are folded, so there is nothing left to train."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the graph's output."""
        values = {0: x}
        for i, operation in enumerate(self.operations):
            values[i + 1] = operation(*[values[v] for v in self.steps[i]])
            for value in self.released[i]:
                del values[value]
        return values[self.output]


def _module(graph: Graph, node: Node, dtype: torch.dtype, device: Device) -> nn.Module:
    op = node.op
    made: dict[str, Any] = dict(dtype=dtype, device=device)
    if isinstance(op, ops.Conv):
        sizes = op.in_channels, op.out_channels
        given = dict(weight=op.weight, bias=op.bias, groups=op.groups, **made)
        if op.plain:
            return PlainConv(_filled(nn.Conv1d, *sizes, 1, **given))
        return _filled(nn.Conv2d, *sizes, tuple(op.weight.shape[2:]), op.stride, op.padding, op.dilation, **given)
    if isinstance(op, ops.Linear):
        return _filled(nn.Linear, *reversed(op.weight.shape), weight=op.weight, bias=op.bias, **made)
    if isinstance(op, ops.Affine):
        norm = nn.BatchNorm2d(op.scale.numel(), eps=TINY, **made)
        with torch.no_grad():
            norm.weight.copy_(op.scale)
            norm.bias.copy_(op.shift)
        return norm
    if isinstance(op, ops.Gather):
        start = int(op.index[0]) if op.index.numel() else 0
        stop = start + op.index.numel()
        is_slice = torch.equal(op.index, torch.arange(start, stop))
        return ChannelSlice(start, stop) if is_slice else ChannelGather(op.index.to(device))
    if isinstance(op, ops.ScatterSum):
        return ChannelScatterSum(op.index.to(device), op.out_channels)
    if isinstance(op, ops.AveragePool):
        return FoldedAvgPool2d(op)
    if isinstance(op, ops.MaxPool):
        return nn.MaxPool2d(op.size, op.stride, op.padding)
    return PLAIN[type(op)]() if type(op) in PLAIN else op.module


PLAIN: dict[type, Callable[[], nn.Module]] = {
    ops.GlobalAveragePool: partial(nn.AdaptiveAvgPool2d, 1),
    ops.Flatten: nn.Flatten,
    ops.Add: Sum,
    ops.Concat: ConcatChannels,
}
