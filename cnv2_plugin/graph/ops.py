"""The operations of a graph: each works on maps ``(N, C, H, W)``, without any layer class.

Every operation works on channels alike in all pixels, except convolutions and opaque modules. Constants are held in
float64, so that folding several of them rounds once, when a module is made.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution with zero padding.

    Attributes:
        weight: ``(O, I / groups, kh, kw)``.
        bias: ``(O,)`` or None.
        stride: of height and width.
        padding: of height and width.
        dilation: of height and width.
        groups: number of groups.
        plain: 1x1 only; compute on ``(N, C, HW)``, which keeps runtimes from blocking the channels.
    """

    weight: Tensor
    bias: Optional[Tensor] = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    plain: bool = False

    @property
    def out_channels(self) -> int:
        """``O``."""
        return self.weight.size(0)

    @property
    def in_channels(self) -> int:
        """``I``."""
        return self.weight.size(1) * self.groups

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel reads the one input pixel at its place."""
        return self.weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel reads the one input channel at its place."""
        return self.weight.size(1) == 1 and self.groups == self.out_channels

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``."""
        kernel = self.weight.shape[2:]
        return pair(
            (s + 2 * p - d * (k - 1) - 1) // step + 1
            for s, p, d, k, step in zip(size, self.padding, self.dilation, kernel, self.stride)
        )

    def grouped(self) -> Tensor:
        """The weight as ``(groups, O / groups, I / groups, kh, kw)``."""
        return self.weight.unflatten(0, (self.groups, -1))

    def dense_weight(self, columns: Optional[Tensor] = None, in_channels: Optional[int] = None) -> Tensor:
        """The same convolution's weight with one group, zeros filled in: ``(O, in_channels, kh, kw)``.

        Args:
            columns: input channel that each of the ``I`` channels stands for; those of one channel are summed.
            in_channels: channels of the input that ``columns`` counts in.
        """
        columns = torch.arange(self.in_channels) if columns is None else columns
        width = self.in_channels if in_channels is None else in_channels
        per_group = self.weight.size(1)
        dense = self.weight.new_zeros(self.out_channels, width, *self.weight.shape[2:])
        rows_per_group = self.out_channels // self.groups
        for g in range(self.groups):
            rows = slice(g * rows_per_group, (g + 1) * rows_per_group)
            dense[rows] = dense[rows].index_add(1, columns[g * per_group : (g + 1) * per_group], self.weight[rows])
        return dense


@dataclass(frozen=True, eq=False)
class Affine:
    """``scale * x + shift`` with one number a channel: a batch normalisation in eval mode."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function of each element alone, the same for all of them: an activation."""

    module: nn.Module


@dataclass(frozen=True, eq=False)
class Gather:
    """Output channel ``j`` is input channel ``index[j]``."""

    index: Tensor


@dataclass(frozen=True, eq=False)
class ScatterSum:
    """Input channel ``r`` is added to output channel ``index[r]``; outputs that nothing is added to are zero."""

    index: Tensor
    channels: int


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two maps."""


@dataclass(frozen=True, eq=False)
class Concat:
    """The inputs' channels one after the other."""


@dataclass(frozen=True, eq=False)
class AveragePool:
    """The mean of windows ``size`` by ``size``, ``stride`` apart; incomplete windows are dropped."""

    size: int
    stride: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``."""
        return pair((s - self.size) // self.stride + 1 for s in size)

    def folding(self, channels: int, height: int) -> int:
        """How many bands of rows to count as channels, so that there is a multiple of 8 (16 where possible) of them.

        Runtimes have fast kernels only for such numbers; a pool works on every channel and every band by itself.
        """
        if self.size != self.stride or channels % 8 == 0:
            return 1
        bands = [k for k in (1, 2, 4, 8, 16) if height % (k * self.size) == 0]
        for multiple in (16, 8):
            for count in bands:
                if channels * count % multiple == 0:
                    return count
        return 1


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The maximum of windows ``size`` by ``size``, ``stride`` apart, with ``padding`` around the map."""

    size: int
    stride: int
    padding: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``."""
        return pair((s + 2 * self.padding - self.size) // self.stride + 1 for s in size)


@dataclass(frozen=True, eq=False)
class GlobalAveragePool:
    """The mean of all pixels: ``(N, C, 1, 1)``."""

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result."""
        return 1, 1


@dataclass(frozen=True, eq=False)
class SqueezeExcitation:
    """Every channel scaled by ``gate(excite @ act(squeeze @ mean))``, with its mean over all pixels.

    Attributes:
        module: computes it in standard operators.
        squeeze: ``(hidden, C)``.
        excite: ``(C, hidden)``.
        act: activation between the two.
        gate: activation behind them.
    """

    module: nn.Module
    squeeze: Tensor
    excite: Tensor
    act: nn.Module
    gate: nn.Module


@dataclass(frozen=True, eq=False)
class Flatten:
    """A map ``(N, C, 1, 1)`` as ``(N, C)``."""


@dataclass(frozen=True, eq=False)
class Linear:
    """``weight @ x + bias`` for ``x`` of shape ``(N, I)``: the classifier behind a flattened map.

    Attributes:
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
    """

    weight: Tensor
    bias: Optional[Tensor] = None


@dataclass(frozen=True, eq=False)
class Opaque:
    """Any module of one map; nothing is known about it but what it gives.

    Attributes:
        module: computes it.
        inputs: channels of the map it is given.
        channels: channels that it gives.
    """

    module: nn.Module
    inputs: int
    channels: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``, by trying."""
        return pair(try_module(self.module, self.inputs, size).shape[2:])


@dataclass(frozen=True, eq=False)
class Input:
    """The map that the graph is given."""

    channels: int


def pair(numbers: Iterable[int]) -> tuple[int, int]:
    """Exactly two numbers: of height and of width."""
    height, width = numbers
    return height, width


def try_module(module: nn.Module, channels: int, size: tuple[int, int] = (8, 8)) -> Tensor:
    """What a module makes of zeros ``(1, channels, *size)``."""
    weight = next(module.parameters(), None)
    dtype, device = (torch.float32, 'cpu') if weight is None else (weight.dtype, weight.device)
    with torch.no_grad():
        return module(torch.zeros(1, channels, *size, dtype=dtype, device=device))


Op = Union[
    Input, Conv, Affine, Pointwise, Gather, ScatterSum, Add, Concat, AveragePool, MaxPool, GlobalAveragePool,
    SqueezeExcitation, Flatten, Linear, Opaque,
]  # fmt: skip
