"""Other groups of the same convolution, for kernels that like fewer and wider groups."""

from dataclasses import replace
from typing import Optional

import torch

from ..graph import Conv, Gather, Graph, Node


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


def fill_groups(graph: Graph, node: Node) -> Optional[int]:
    """Make one group of all, with zeros filled in."""
    return merge_groups(graph, node, node.op.groups) if isinstance(node.op, Conv) else None


def merge_gathered(graph: Graph, node: Node, count: int) -> Optional[int]:
    """Merge every ``count`` neighbouring groups behind a gather; a channel that several of them read comes once.

    All merged groups are widened to the widest one with columns of zeros.
    """
    conv = node.op
    if not isinstance(conv, Conv) or conv.groups % count or conv.groups == 1 or count == 1:
        return None
    source = graph.source(node)
    if not isinstance(source.op, Gather):
        return None
    index = source.op.index.view(conv.groups // count, -1)
    unions = [row.unique() for row in index]
    width = max(union.numel() for union in unions)
    blocks = conv.grouped().unflatten(0, (-1, count))
    weight = conv.weight.new_zeros(len(unions), conv.out_channels // len(unions), width, *conv.weight.shape[2:])
    gathered = []
    for i, union in enumerate(unions):
        part = Conv(blocks[i].flatten(0, 1), groups=count)
        place = torch.searchsorted(union, index[i])
        weight[i, :, : union.numel()] = part.dense_weight(place, union.numel())
        gathered.append(torch.cat((union, union[:1].expand(width - union.numel()))))
    merged = replace(conv, weight=weight.flatten(0, 1), groups=len(unions))
    return graph.add(merged, graph.add(Gather(torch.cat(gathered)), *source.inputs))


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
