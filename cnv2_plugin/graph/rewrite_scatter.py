"""Exact rewrites of the index layer behind a reactivation."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from .ir import Graph, Node, rewrites
from .ops import Add, Concat, Conv, Gather, ScatterSum


@rewrites(ScatterSum, behind=Conv)
def scatter_dense(graph: Graph, node: Node, scatter: ScatterSum, source: Node) -> Optional[int]:
    """Sum the rows of the group convolution in its weight: one dense 1x1 convolution, zeros filled in."""
    conv = source.op
    if conv.bias is not None:
        return None
    return graph.add(replace(conv, weight=_summed(conv, scatter), groups=1), *source.inputs)


def level_table(index: Tensor, channels: int) -> Tensor:
    """The rows that each channel sums, ``(levels, channels)``, with ``index.numel()`` where there are no more."""
    multiplicity = torch.bincount(index, minlength=channels)
    order = index.argsort(stable=True)
    channel = index[order]
    level = torch.arange(index.numel(), device=index.device) - (multiplicity.cumsum(0) - multiplicity)[channel]
    table = torch.full((max(int(multiplicity.max()), 1), channels), index.numel(), device=index.device)
    table[level, channel] = order
    return table


@rewrites(ScatterSum, behind=Conv)
def scatter_levels(graph: Graph, node: Node, scatter: ScatterSum, source: Node) -> Optional[int]:
    """One gather for each row that the most-updated channel sums, with a row of zeros for the channels without one."""
    conv, index, channels = source.op, scatter.index, scatter.out_channels
    if conv.bias is not None:
        return None
    rows = conv.out_channels // conv.groups
    padded = torch.cat((conv.grouped(), torch.zeros_like(conv.grouped()[:, :1])), 1).flatten(0, 1)
    value = graph.add(replace(conv, weight=padded), *source.inputs)
    table = level_table(index, channels)
    table = torch.where(table < index.numel(), table + table // rows, padded.size(0) - 1)
    total = graph.add(Gather(table[0]), value)
    for row in table[1:]:
        total = graph.add(Add(), graph.add(Gather(row), value), total)
    return total


@rewrites(ScatterSum, behind=Conv)
def scatter_split(graph: Graph, node: Node, scatter: ScatterSum, source: Node) -> Optional[int]:
    """Channels that one group updates by a group convolution, those of several by a small dense one, then one gather.

    Both get rows of zeros where they are needed: to make the groups equally large, and one for the channels that
    nothing updates.
    """
    conv, index, channels = source.op, scatter.index, scatter.out_channels
    if conv.bias is not None or conv.groups == 1:
        return None
    multiplicity = torch.bincount(index, minlength=channels)
    several = (multiplicity > 1).nonzero().flatten()
    group_of_row = torch.arange(conv.out_channels) // (conv.out_channels // conv.groups)
    single = multiplicity[index] == 1
    place = torch.full((channels,), -1)
    values, offset = [], 0
    if bool(single.any()):
        counts = torch.bincount(group_of_row[single], minlength=conv.groups)
        width = int(counts.max())
        if not several.numel() and bool((multiplicity == 0).any()) and bool((counts == width).all()):
            width += 1
        weight = conv.weight.new_zeros(conv.groups * width, *conv.weight.shape[1:])
        taken = torch.zeros(conv.groups * width, dtype=torch.bool)
        kept = single.nonzero().flatten()
        within = torch.cat([torch.arange(int(count)) for count in counts])
        slots = group_of_row[kept] * width + within
        weight[slots], taken[slots] = conv.weight[kept], True
        place[index[kept]] = slots
        values.append(graph.add(replace(conv, weight=weight), *source.inputs))
        offset = conv.groups * width
        if not bool(taken.all()):
            place[multiplicity == 0] = int((~taken).nonzero()[0])
    if several.numel():
        weight = _summed(conv, scatter)[several]
        place[several] = offset + torch.arange(several.numel())
        if bool((place < 0).any()):
            weight = torch.cat((weight, torch.zeros_like(weight[:1])))
            place[place < 0] = offset + several.numel()
        values.append(graph.add(replace(conv, weight=weight, groups=1), *source.inputs))
    rows = values[0] if len(values) == 1 else graph.add(Concat(), *values)
    return graph.add(Gather(place), rows)


def _summed(conv: Conv, scatter: ScatterSum) -> Tensor:
    dense = conv.dense_weight()
    return dense.new_zeros(scatter.out_channels, *dense.shape[1:]).index_add(0, scatter.index, dense)
