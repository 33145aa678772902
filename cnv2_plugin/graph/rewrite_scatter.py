"""Exact rewrites of the index layer behind a reactivation."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from .ir import Add, Concat, Conv, Gather, Graph, Node, ScatterSum


def scatter_dense(graph: Graph, node: Node) -> Optional[int]:
    """Sum the rows of the group convolution in its weight: one dense 1x1 convolution, zeros filled in."""
    found = _rows_of(graph, node)
    if found is None:
        return None
    conv, scatter, value = found
    return graph.add(replace(conv, weight=_summed(conv, scatter), groups=1), value)


def level_table(index: Tensor, channels: int) -> Tensor:
    """Return the rows that each channel sums, ``(levels, channels)``, with ``index.numel()`` where there are no more.

    Args:
        index: channel that each row is added to.
        channels: number of channels.
    """
    multiplicity = torch.bincount(index, minlength=channels)
    order = index.argsort(stable=True)
    channel = index[order]
    level = torch.arange(index.numel(), device=index.device) - (multiplicity.cumsum(0) - multiplicity)[channel]
    table = torch.full((max(int(multiplicity.max()), 1), channels), index.numel(), device=index.device)
    table[level, channel] = order
    return table


def scatter_levels(graph: Graph, node: Node) -> Optional[int]:
    """One gather for each row that the most-updated channel sums, with a row of zeros for the channels without one."""
    found = _rows_of(graph, node)
    if found is None:
        return None
    conv, scatter, value = found
    index, channels = scatter.index, scatter.channels
    rows = conv.out_channels // conv.groups
    padded = torch.cat((conv.grouped(), torch.zeros_like(conv.grouped()[:, :1])), 1).flatten(0, 1)
    value = graph.add(replace(conv, weight=padded), value)
    table = level_table(index, channels)
    table = torch.where(table < index.numel(), table + table // rows, padded.size(0) - 1)
    total = graph.add(Gather(table[0]), value)
    for row in table[1:]:
        total = graph.add(Add(), graph.add(Gather(row), value), total)
    return total


def scatter_split(graph: Graph, node: Node) -> Optional[int]:
    """Channels that one group updates by a group convolution, those of several by a small dense one, then one gather.

    Both get rows of zeros where they are needed: to make the groups equally large, and one for the channels that
    nothing updates.
    """
    found = _rows_of(graph, node)
    if found is None or found[0].groups == 1:
        return None
    conv, scatter, value = found
    index, channels = scatter.index, scatter.channels
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
        weight = _summed(conv, scatter)[several]
        place[several] = offset + torch.arange(several.numel())
        if bool((place < 0).any()):
            weight = torch.cat((weight, torch.zeros_like(weight[:1])))
            place[place < 0] = offset + several.numel()
        values.append(graph.add(replace(conv, weight=weight, groups=1), value))
    rows = values[0] if len(values) == 1 else graph.add(Concat(), *values)
    return graph.add(Gather(place), rows)


def _rows_of(graph: Graph, node: Node) -> Optional[tuple[Conv, ScatterSum, int]]:
    """The convolution under an index layer, that layer and the value read; None where the pattern is another."""
    if not isinstance(node.op, ScatterSum):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Conv) or source.op.bias is not None:
        return None
    return source.op, node.op, source.inputs[0]


def _summed(conv: Conv, scatter: ScatterSum) -> Tensor:
    dense = conv.dense_weight()
    return dense.new_zeros(scatter.channels, *dense.shape[1:]).index_add(0, scatter.index, dense)
