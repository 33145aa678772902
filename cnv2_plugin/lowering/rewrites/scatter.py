"""The index layer of sparse feature reactivation without a scatter, which runtimes do slowly."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from ..graph import Add, Concat, Conv, Gather, Graph, Node, ScatterSum


def scatter_dense(graph: Graph, node: Node) -> Optional[int]:
    """Sum the rows of the group convolution in its weight: one dense 1x1 convolution, zeros filled in."""
    conv, value = _rows_of(graph, node)
    if conv is None:
        return None
    return graph.add(replace(conv, weight=_summed(conv, node.op), groups=1), value)


def scatter_levels(graph: Graph, node: Node) -> Optional[int]:
    """One gather for each row that the most-updated channel sums, with a row of zeros for the channels without one."""
    conv, value = _rows_of(graph, node)
    if conv is None:
        return None
    index, channels = node.op.index, node.op.channels
    rows = conv.out_channels // conv.groups
    padded = torch.cat((conv.grouped(), torch.zeros_like(conv.grouped()[:, :1])), 1).flatten(0, 1)
    value = graph.add(replace(conv, weight=padded), value)
    zero = padded.size(0) - 1
    multiplicity = torch.bincount(index, minlength=channels)
    order = index.argsort(stable=True)
    level = torch.arange(index.numel()) - (multiplicity.cumsum(0) - multiplicity)[index[order]]
    table = torch.full((max(int(multiplicity.max()), 1), channels), zero)
    table[level, index[order]] = order + order // rows
    total = graph.add(Gather(table[0]), value)
    for row in table[1:]:
        total = graph.add(Add(), graph.add(Gather(row), value), total)
    return total


def scatter_split(graph: Graph, node: Node) -> Optional[int]:
    """Channels that one group updates by a group convolution, those of several by a small dense one, then one gather.

    Both get rows of zeros where they are needed: to make the groups equally large, and one for the channels that
    nothing updates.
    """
    conv, value = _rows_of(graph, node)
    if conv is None or conv.groups == 1:
        return None
    index, channels = node.op.index, node.op.channels
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
        values.append(graph.add(replace(conv, weight=weight), value))
        offset = conv.groups * width
        if not bool(taken.all()):
            place[multiplicity == 0] = int((~taken).nonzero()[0])
    if several.numel():
        weight = _summed(conv, node.op)[several]
        place[several] = offset + torch.arange(several.numel())
        if bool((place < 0).any()):
            weight = torch.cat((weight, torch.zeros_like(weight[:1])))
            place[place < 0] = offset + several.numel()
        values.append(graph.add(replace(conv, weight=weight, groups=1), value))
    rows = values[0] if len(values) == 1 else graph.add(Concat(), *values)
    return graph.add(Gather(place), rows)


def _rows_of(graph: Graph, node: Node) -> tuple[Optional[Conv], int]:
    """The convolution under an index layer and the value it reads; None where the pattern is another."""
    source = graph.source(node) if isinstance(node.op, ScatterSum) else None
    if source is None or not isinstance(source.op, Conv) or source.op.bias is not None:
        return None, 0
    return source.op, source.inputs[0]


def _summed(conv: Conv, scatter: ScatterSum) -> Tensor:
    dense = conv.dense_weight()
    return dense.new_zeros(scatter.channels, *dense.shape[1:]).index_add(0, scatter.index, dense)
