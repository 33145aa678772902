"""A spatial group convolution as one for every column of its kernel, for kernels that want many outputs in a group."""

from dataclasses import replace
from math import gcd
from typing import Optional

import torch

from ..graph import Conv, Graph, Node
from .groups import merge_groups

BLOCK = 8
"""Channels that runtimes compute at once."""


def split_columns(graph: Graph, node: Node) -> Optional[int]:
    """``kw`` columns of the kernel give ``kw`` times the outputs; a 0/1 convolution 1 x ``kw`` shifts and sums them.

    The multiply-adds are those of the convolution, with groups ``kw`` times as wide, and a few for the sum. The large
    one has no padding left and right, which runtimes treat pixel by pixel. Outputs of a group are filled up to a
    multiple of 8 with zeros, and groups of the sum merged where that makes 8 of them.
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
    ones = blocks.new_zeros(outputs, channels, 1, width)
    for column in range(width):
        place = torch.arange(outputs)
        ones[place, column * outputs + place, 0, column] = 1
    sums = replace(
        conv,
        weight=ones.repeat(groups, 1, 1, 1),
        stride=(1, conv.stride[1]),
        padding=(0, conv.padding[1]),
        dilation=(1, conv.dilation[1]),
    )
    value = graph.add(sums, graph.add(columns, *node.inputs))
    merged = merge_groups(graph, graph[value], gcd(groups, BLOCK // gcd(outputs, BLOCK)))
    return value if merged is None else merged
