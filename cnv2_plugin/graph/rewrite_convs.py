"""Exact rewrites of convolutions: folded normalisations, other groups, columns, depthwise sums, plain layout."""

from dataclasses import replace
from math import gcd
from typing import Optional

import torch
from torch import Tensor

from .ir import Graph, Node, rewrites
from .ops import Add, Affine, Concat, Conv, Gather
from .rewrite_gathers import CHANNELWISE, permutation_before


@rewrites(Affine, behind=Conv)
def fold_affine(graph: Graph, node: Node, affine: Affine, source: Node) -> Optional[int]:
    """Fold a normalisation into the convolution in front of it."""
    if not graph.is_only_read_by(source.id, node):
        return None
    conv, scale, shift = source.op, affine.scale, affine.shift
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    folded = replace(conv, weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bias * scale + shift)
    return graph.add(folded, *source.inputs, layer=source.layer)


@rewrites(Conv)
def merge_groups(graph: Graph, node: Node, conv: Conv, count: int) -> Optional[int]:
    """Make one group of every ``count`` neighbouring ones, with zeros filled in."""
    if conv.groups % count or conv.groups == 1 or count == 1:
        return None
    blocks = conv.grouped().unflatten(0, (-1, count))
    merged, _, rows, columns, *kernel = blocks.shape
    weight = conv.weight.new_zeros(merged, count, rows, count, columns, *kernel)
    for i in range(count):
        weight[:, i, :, i] = blocks[:, i]
    weight = weight.flatten(0, 2).flatten(1, 2)
    return graph.add(replace(conv, weight=weight, groups=merged), *node.inputs)


BLOCK = 8
"""Channels that runtimes compute at once."""


@rewrites(Conv, behind=Gather)
def pad_groups(graph: Graph, node: Node, conv: Conv, source: Node) -> Optional[int]:
    """Widen the gathered inputs of every group to a multiple of 8 with columns of zeros."""
    missing = -conv.weight.size(1) % BLOCK
    if conv.groups == 1 or not missing:
        return None
    index = source.op.index.view(conv.groups, -1)
    index = torch.cat((index, index[:, :1].expand(-1, missing)), 1).flatten()
    columns = conv.weight.new_zeros(conv.out_channels, missing, *conv.weight.shape[2:])
    padded = replace(conv, weight=torch.cat((conv.weight, columns), 1))
    return graph.add(padded, graph.add(Gather(index), *source.inputs))


@rewrites(Conv)
def split_columns(graph: Graph, node: Node, conv: Conv) -> Optional[int]:
    """``kw`` columns of the kernel give ``kw`` times the outputs; 0/1 convolutions shift and then sum them.

    The multiply-adds are those of the convolution, with groups ``kw`` times as wide, and few for shift (depthwise,
    1 x ``kw``) and sum (1 x 1). The large convolution has no padding left and right, which runtimes treat pixel by
    pixel. Outputs of a group are filled up to a multiple of 8 with zeros, and groups of the sum merged where that
    makes 8 of them.
    """
    if conv.is_depthwise or conv.groups == 1 or conv.weight.size(3) == 1:
        return None
    blocks = conv.grouped()
    groups, outputs, inputs, height, width = blocks.shape
    channels = -(-width * outputs // BLOCK) * BLOCK
    weight = blocks.new_zeros(groups, channels, inputs, height, 1)
    weight[:, : width * outputs, :, :, 0] = blocks.permute(0, 4, 1, 2, 3).flatten(1, 2)
    (down, right), (top, left), (tall, wide) = conv.stride, conv.padding, conv.dilation
    columns = Conv(weight.flatten(0, 1), None, (down, 1), (top, 0), (tall, 1), groups)
    shift, ones = (part.repeat(groups, 1, 1, 1) for part in _shift_and_sum(blocks, channels))
    shifts = Conv(shift, None, (1, right), (0, left), (1, wide), groups * channels)
    value = graph.add(shifts, graph.add(columns, *node.inputs))
    value = graph.add(Conv(ones, conv.bias, groups=groups), value)
    merged = merge_groups(graph, graph[value], count=gcd(groups, BLOCK // gcd(outputs, BLOCK)))
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


@rewrites(Conv)
def depthwise_sum(graph: Graph, node: Node, conv: Conv) -> Optional[int]:
    """With ``n`` outputs a group: ``n`` depthwise convolutions, each summed over its groups by a dense 0/1 1x1 one.

    Each sum puts its results where they belong, so a permutation of the inputs costs nothing and is absorbed.
    """
    if conv.groups == 1 or conv.is_depthwise or conv.weight.shape[2:] == (1, 1):
        return None
    value, order = node.inputs[0], torch.arange(conv.in_channels)
    if (permuted := permutation_before(graph, node)) is not None:
        value, order = permuted.inputs[0], permuted.op.index
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


@rewrites(Conv)
def split_concat(graph: Graph, node: Node, conv: Conv) -> Optional[int]:
    """``Conv(f(Concat(x, y)))`` is ``Conv(f(x)) + Conv(f(y))`` for normalisations and activations ``f``.

    Runtimes that block channels concatenate blocks only; maps of other widths stay blocked when they stay apart.
    """
    above, chain = graph.above(node, CHANNELWISE)
    if not conv.is_pointwise or conv.groups > 1 or not isinstance(above.op, Concat):
        return None
    total, start = None, 0
    for value in above.inputs:
        part = slice(start, start + graph.channels(value))
        start = part.stop
        for op in (n.op for n in reversed(chain)):
            value = graph.add(Affine(op.scale[part], op.shift[part]) if isinstance(op, Affine) else op, value)
        bias = conv.bias if total is None else None
        value = graph.add(replace(conv, weight=conv.weight[:, part], bias=bias), value)
        total = value if total is None else graph.add(Add(), value, total)
    return total


@rewrites(Conv)
def use_plain_layout(graph: Graph, node: Node, conv: Conv) -> Optional[int]:
    """Compute on ``(N, C, HW)``: runtimes block channels of four-dimensional convolutions only."""
    return graph.add(replace(conv, plain=True), *node.inputs) if conv.is_pointwise and not conv.plain else None
