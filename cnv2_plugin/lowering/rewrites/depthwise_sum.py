"""A spatial group convolution with few outputs a group as depthwise convolutions and 1x1 sums."""

from dataclasses import replace
from typing import Optional

import torch

from ..graph import Add, Conv, Gather, Graph, Node
from .gathers import is_permutation


def depthwise_sum(graph: Graph, node: Node) -> Optional[int]:
    """With ``n`` outputs a group: ``n`` depthwise convolutions, each summed over its groups by a dense 0/1 1x1 one.

    Each sum puts its results where they belong, so a permutation of the inputs costs nothing and is absorbed.
    """
    conv = node.op
    if not isinstance(conv, Conv) or conv.groups == 1 or conv.is_depthwise or conv.weight.shape[2:] == (1, 1):
        return None
    source = graph.source(node)
    value, order = node.inputs[0], torch.arange(conv.in_channels)
    if isinstance(source.op, Gather) and is_permutation(source.op.index, graph.channels(source.inputs[0])):
        value, order = source.inputs[0], source.op.index
    blocks = conv.grouped()
    groups, outputs, inputs = blocks.shape[:3]
    total = None
    for j in range(outputs):
        filters = torch.empty_like(blocks[:, j].flatten(0, 1))
        filters[order] = blocks[:, j].flatten(0, 1)
        depthwise = replace(conv, weight=filters.unsqueeze(1), bias=None, groups=conv.in_channels)
        rows = torch.arange(groups).repeat_interleave(inputs) * outputs + j
        ones = conv.weight.new_zeros(conv.out_channels, conv.in_channels, 1, 1)
        ones[rows, order] = 1
        sums = Conv(ones, conv.bias if j == 0 else None)
        part = graph.add(sums, graph.add(depthwise, value))
        total = part if total is None else graph.add(Add(), part, total)
    return total
