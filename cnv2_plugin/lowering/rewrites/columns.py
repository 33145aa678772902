"""A spatial group convolution as one for every column of its kernel, for kernels that want many outputs in a group."""

from dataclasses import replace
from math import gcd
from typing import Optional

import torch
from torch import Tensor

from ..graph import Conv, Graph, Node
from .groups import merge_groups

BLOCK = 8
"""Channels that runtimes compute at once."""


def split_columns(graph: Graph, node: Node) -> Optional[int]:
    """``kw`` columns of the kernel give ``kw`` times the outputs; 0/1 convolutions shift and then sum them.

    The multiply-adds are those of the convolution, with groups ``kw`` times as wide, and few for shift (depthwise,
    1 x ``kw``) and sum (1 x 1). The large convolution has no padding left and right, which runtimes treat pixel by
    pixel. Outputs of a group are filled up to a multiple of 8 with zeros, and groups of the sum merged where that
    makes 8 of them.
    """
    conv = node.op
    if not isinstance(conv, Conv) or conv.is_depthwise or conv.groups == 1 or conv.weight.size(3) == 1:
        return None
    blocks = conv.grouped()
    groups, outputs, inputs, height, width = blocks.shape
    channels = -(-width * outputs // BLOCK) * BLOCK
    weight = blocks.new_zeros(groups, channels, inputs, height, 1)
    weight[:, : width * outputs, :, :, 0] = blocks.permute(0, 4, 1, 2, 3).flatten(1, 2)
    columns = replace(
        conv,
        weight=weight.flatten(0, 1),
        bias=None,
        stride=(conv.stride[0], 1),
        padding=(conv.padding[0], 0),
        dilation=(conv.dilation[0], 1),
    )
    shift, ones = _shift_and_sum(blocks, channels)
    shifts = Conv(
        shift.repeat(groups, 1, 1, 1),
        stride=(1, conv.stride[1]),
        padding=(0, conv.padding[1]),
        dilation=(1, conv.dilation[1]),
        groups=groups * channels,
    )
    sums = Conv(ones.repeat(groups, 1, 1, 1), conv.bias, groups=groups)
    value = graph.add(sums, graph.add(shifts, graph.add(columns, *node.inputs)))
    merged = merge_groups(graph, graph[value], gcd(groups, BLOCK // gcd(outputs, BLOCK)))
    return value if merged is None else merged


def _shift_and_sum(blocks: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Of one group: ``(channels, 1, 1, kw)`` that shift each column, ``(outputs, channels, 1, 1)`` that sum them."""
    outputs, width = blocks.size(1), blocks.size(4)
    shift, ones = blocks.new_zeros(channels, 1, 1, width), blocks.new_zeros(outputs, channels, 1, 1)
    for column in range(width):
        rows = column * outputs + torch.arange(outputs)
        shift[rows, 0, 0, column] = 1
        ones[torch.arange(outputs), rows] = 1
    return shift, ones
