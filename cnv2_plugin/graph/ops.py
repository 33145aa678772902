"""The operations of a graph: each works on maps ``(N, C, H, W)``, without any layer class.

Every operation works on channels alike in all pixels, except convolutions and opaque modules. Constants are held in
float64, so that folding several of them rounds once, when a module is made.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn


class Op:
    """An operation; unless it says otherwise it keeps the size and, without ``out_channels``, the channels."""

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``."""
        return size


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """A convolution with zero padding.

    Attributes:
        weight: ``(O, I / groups, kh, kw)``.
        bias: ``(O,)`` or None.
        stride: of height and width.
        padding: of height and width.
        dilation: of height and width.
        groups: number of groups.
        plain: 1x1 only; compute on ``(N, C, HW)``, which keeps runtimes from blocking the channels.
        limits: least and largest input, where the native kernels may round it to 8 bits between them, or ()
            where they may round only the weight.
    """

    weight: Tensor
    bias: Optional[Tensor] = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    plain: bool = False
    limits: Optional[tuple[float, ...]] = None

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
        blocks = self.grouped()
        dense = blocks.new_zeros(*blocks.shape[:2], width, *blocks.shape[3:])
        for part, index, block in zip(dense, columns.view(self.groups, -1), blocks):
            part.index_add_(1, index, block)
        return dense.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """``scale * x + shift`` with one number a channel: a batch normalisation in eval mode."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Pointwise(Op):
    """A function of each element alone, the same for all of them: an activation."""

    module: nn.Module


@dataclass(frozen=True, eq=False)
class Gather(Op):
    """Output channel ``j`` is input channel ``index[j]``."""

    index: Tensor

    @property
    def out_channels(self) -> int:
        """Number of gathered channels."""
        return self.index.numel()


@dataclass(frozen=True, eq=False)
class ScatterSum(Op):
    """Input channel ``r`` is added to output channel ``index[r]``; outputs that nothing is added to are zero."""

    index: Tensor
    out_channels: int


class Add(Op):
    """The sum of two maps."""


class Concat(Op):
    """The inputs' channels one after the other."""


@dataclass(frozen=True, eq=False)
class AveragePool(Op):
    """The mean of windows ``size`` by ``size``, ``stride`` apart; incomplete windows are dropped."""

    size: int
    stride: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return pair((s - self.size) // self.stride + 1 for s in size)

    def folding(self, channels: int, height: int) -> int:
        """How many bands of rows to count as channels, so that there is a multiple of 8 (16 where possible) of them.

        Runtimes have fast kernels only for such numbers; a pool works on every channel and every band by itself.
        """
        if self.size != self.stride or channels % 8 == 0:
            return 1
        bands = [k for k in (1, 2, 4, 8, 16) if height % (k * self.size) == 0]
        return next((count for multiple in (16, 8) for count in bands if channels * count % multiple == 0), 1)


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """The maximum of windows ``size`` by ``size``, ``stride`` apart, with ``padding`` around the map."""

    size: int
    stride: int
    padding: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return pair((s + 2 * self.padding - self.size) // self.stride + 1 for s in size)


class GlobalAveragePool(Op):
    """The mean of all pixels: ``(N, C, 1, 1)``."""

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True, eq=False)
class SqueezeExcitation(Op):
    """Every channel scaled by ``gate(excite @ act(squeeze @ mean))``, with its mean over all pixels.

    Attributes:
        module: computes it in standard operators.
        squeeze: ``(hidden, C)``.
        excite: ``(C, hidden)``.
        act: activation between the two.
        gate: activation behind them.
        in_bytes: the native kernels may round the weights to 8 bits.
    """

    module: nn.Module
    squeeze: Tensor
    excite: Tensor
    act: nn.Module
    gate: nn.Module
    in_bytes: bool = False


class Flatten(Op):
    """A map ``(N, C, 1, 1)`` as ``(N, C)``."""


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """``weight @ x + bias`` for ``x`` of shape ``(N, I)``: the classifier, its weight ``(O, I)``, behind a flat map."""

    weight: Tensor
    bias: Optional[Tensor] = None

    @property
    def out_channels(self) -> int:
        """``O``."""
        return self.weight.size(0)


@dataclass(frozen=True, eq=False)
class Opaque(Op):
    """Any module of one map of ``in_channels``; nothing is known about it but what it gives."""

    module: nn.Module
    in_channels: int
    out_channels: int

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an input of ``size``, by trying."""
        return pair(try_module(self.module, self.in_channels, size).shape[2:])


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The map that the graph is given."""

    out_channels: int


def pair(numbers: Iterable[int]) -> tuple[int, int]:
    """Exactly two numbers: of height and of width."""
    height, width = numbers
    return height, width


def dtype_device(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Type and place of a module's parameters."""
    weight = next(module.parameters(), None)
    return (torch.float32, torch.device('cpu')) if weight is None else (weight.dtype, weight.device)


def try_module(module: nn.Module, channels: int, size: tuple[int, int] = (8, 8)) -> Tensor:
    """What a module makes of zeros ``(1, channels, *size)``."""
    dtype, device = dtype_device(module)
    with torch.no_grad():
        return module(torch.zeros(1, channels, *size, dtype=dtype, device=device))
