"""A spatial group convolution as one for every row of its kernel, for kernels that want many outputs in a group."""

from dataclasses import replace
from math import gcd
from typing import Optional

import torch

from ..graph import Conv, Graph, Node
from .groups import merge_groups

BLOCK = 8
"""Channels that runtimes compute at once."""


def split_rows(graph: Graph, node: Node) -> Optional[int]:
    """``kh`` rows of the kernel give ``kh`` times the outputs; a 0/1 convolution ``kh`` x 1 shifts and sums them.

    The multiply-adds are those of the convolution, with groups ``kh`` times as wide, and a few for the sum. Outputs of
    a group are filled up to a multiple of 8 with zeros, and groups of the sum merged where that makes 8 of them.
    """
    conv = node.op
    if not isinstance(conv, Conv) or conv.is_depthwise or conv.groups == 1 or conv.weight.size(2) == 1:
        return None
    blocks = conv.grouped()
    groups, outputs, inputs, height, width = blocks.shape
    channels = -(-height * outputs // BLOCK) * BLOCK
    weight = blocks.new_zeros(groups, channels, inputs, 1, width)
    weight[:, : height * outputs, :, 0] = blocks.permute(0, 3, 1, 2, 4).flatten(1, 2)
    rows = replace(
        conv, weight=weight.flatten(0, 1), bias=None, stride=(1, conv.stride[1]), padding=(0, conv.padding[1])
    )
    ones = blocks.new_zeros(outputs, channels, height, 1)
    for row in range(height):
        place = torch.arange(outputs)
        ones[place, row * outputs + place, row] = 1
    sums = replace(conv, weight=ones.repeat(groups, 1, 1, 1), stride=(conv.stride[0], 1), padding=(conv.padding[0], 0))
    value = graph.add(sums, graph.add(rows, *node.inputs))
    merged = merge_groups(graph, graph[value], gcd(groups, BLOCK // gcd(outputs, BLOCK)))
    return value if merged is None else merged
