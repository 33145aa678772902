"""Exact rewrites of convolutions: folded normalisations, other groups, columns, depthwise sums, plain layout."""

from dataclasses import replace
from math import gcd
from typing import Optional

import torch
from torch import Tensor

from .ir import Add, Affine, Concat, Conv, Gather, Graph, Node, Pointwise
from .rewrite_gathers import is_permutation


def fold_affine(graph: Graph, node: Node) -> Optional[int]:
    """Fold a normalisation into the convolution in front of it."""
    if not isinstance(node.op, Affine):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Conv) or not graph.is_only_read_by(source.id, node):
        return None
    conv, scale, shift = source.op, node.op.scale, node.op.shift
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    folded = replace(conv, weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bias * scale + shift)
    return graph.add(folded, *source.inputs, layer=source.layer)


def merge_groups(graph: Graph, node: Node, count: int) -> Optional[int]:
    """Make one group of every ``count`` neighbouring ones, with zeros filled in."""
    conv = node.op
    if not isinstance(conv, Conv) or conv.groups % count or conv.groups == 1 or count == 1:
        return None
    blocks = conv.grouped().unflatten(0, (-1, count))
    merged, _, rows, columns, *kernel = blocks.shape
    weight = conv.weight.new_zeros(merged, count, rows, count, columns, *kernel)
    for i in range(count):
        weight[:, i, :, i] = blocks[:, i]
    weight = weight.flatten(0, 2).flatten(1, 2)
    return graph.add(replace(conv, weight=weight, groups=merged), *node.inputs)


def pad_groups(graph: Graph, node: Node, multiple: int = 8) -> Optional[int]:
    """Widen the gathered inputs of every group to a multiple of ``multiple`` with columns of zeros."""
    conv = node.op
    if not isinstance(conv, Conv) or conv.groups == 1:
        return None
    source = graph.source(node)
    missing = -conv.weight.size(1) % multiple
    if not isinstance(source.op, Gather) or not missing:
        return None
    index = source.op.index.view(conv.groups, -1)
    index = torch.cat((index, index[:, :1].expand(-1, missing)), 1).flatten()
    columns = conv.weight.new_zeros(conv.out_channels, missing, *conv.weight.shape[2:])
    padded = replace(conv, weight=torch.cat((conv.weight, columns), 1))
    return graph.add(padded, graph.add(Gather(index), *source.inputs))


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


def split_concat(graph: Graph, node: Node) -> Optional[int]:
    """``Conv(f(Concat(x, y)))`` is ``Conv(f(x)) + Conv(f(y))`` for normalisations and activations ``f``.

    Runtimes that block channels concatenate blocks only; maps of other widths stay blocked when they stay apart.
    """
    conv = node.op
    if not isinstance(conv, Conv) or not conv.is_pointwise or conv.groups > 1:
        return None
    chain, above = [], graph.source(node)
    while isinstance(above.op, (Affine, Pointwise)):
        chain.append(above.op)
        above = graph.source(above)
    if not isinstance(above.op, Concat):
        return None
    total, start = None, 0
    for value in above.inputs:
        part = slice(start, start + graph.channels(value))
        start = part.stop
        for op in reversed(chain):
            value = graph.add(Affine(op.scale[part], op.shift[part]) if isinstance(op, Affine) else op, value)
        bias = conv.bias if total is None else None
        value = graph.add(replace(conv, weight=conv.weight[:, part], bias=bias), value)
        total = value if total is None else graph.add(Add(), value, total)
    return total


def use_plain_layout(graph: Graph, node: Node) -> Optional[int]:
    """Compute on ``(N, C, HW)``: runtimes block channels of four-dimensional convolutions only."""
    if not isinstance(node.op, Conv) or not node.op.is_pointwise or node.op.plain:
        return None
    return graph.add(replace(node.op, plain=True), *node.inputs)
