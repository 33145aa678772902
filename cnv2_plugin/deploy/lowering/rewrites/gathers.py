"""Moving, joining and absorbing channel gathers."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from ..graph import Affine, Conv, Gather, Graph, Node, Pointwise


def is_permutation(index: Tensor, channels: int) -> bool:
    """Whether an index names every one of ``channels`` once."""
    return index.numel() == channels and bool((index.sort().values == torch.arange(channels)).all())


def join_gathers(graph: Graph, node: Node) -> Optional[int]:
    """Two gathers in a row are one; a gather of all channels in order is none."""
    if not isinstance(node.op, Gather):
        return None
    source = graph.source(node)
    if isinstance(source.op, Gather):
        return graph.add(Gather(source.op.index[node.op.index]), *source.inputs)
    channels = graph.channels(source.id)
    if node.op.index.numel() == channels and torch.equal(node.op.index, torch.arange(channels)):
        return source.id
    return None


def sink_permutation(graph: Graph, node: Node) -> Optional[int]:
    """Normalise and activate before a permutation, so that both can merge with the convolution before it."""
    source = graph.source(node) if node.inputs else None
    if source is None or not isinstance(source.op, Gather):
        return None
    if not is_permutation(source.op.index, graph.channels(source.inputs[0])):
        return None
    return swap_gather(graph, node)


def swap_gather(graph: Graph, node: Node) -> Optional[int]:
    """``f(Gather(x))`` is ``Gather(f(x))`` for a normalisation or an activation ``f``.

    Where a channel is gathered several times, a normalisation must treat its copies alike. Channels that are not
    gathered become zero.
    """
    if not isinstance(node.op, (Affine, Pointwise)):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Gather):
        return None
    index, op = source.op.index, node.op
    if isinstance(op, Affine):
        channels = graph.channels(source.inputs[0])
        scale, shift = op.scale.new_zeros(channels), op.shift.new_zeros(channels)
        scale[index], shift[index] = op.scale, op.shift
        if not torch.equal(scale[index], op.scale) or not torch.equal(shift[index], op.shift):
            return None
        op = Affine(scale, shift)
    return graph.add(Gather(index), graph.add(op, *source.inputs))


def absorb_into_conv(graph: Graph, node: Node) -> Optional[int]:
    """``Conv(Gather(x))`` is a convolution of all channels of ``x`` with zeros filled in."""
    if not isinstance(node.op, Conv):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Gather):
        return None
    channels = graph.channels(source.inputs[0])
    weight = node.op.dense_weight(source.op.index, channels)
    return graph.add(replace(node.op, weight=weight, groups=1), *source.inputs)


def absorb_permutation(graph: Graph, node: Node) -> Optional[int]:
    """A permutation in front of a convolution of one group only permutes its columns."""
    if not isinstance(node.op, Conv) or node.op.groups > 1:
        return None
    source = graph.source(node)
    if not isinstance(source.op, Gather):
        return None
    if not is_permutation(source.op.index, graph.channels(source.inputs[0])):
        return None
    return absorb_into_conv(graph, node)


def permute_rows(graph: Graph, node: Node) -> Optional[int]:
    """Gathering the outputs of a convolution of one group only selects its rows."""
    if not isinstance(node.op, Gather):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Conv) or source.op.groups > 1 or not graph.is_only_read_by(source.id, node):
        return None
    conv, index = source.op, node.op.index
    bias = None if conv.bias is None else conv.bias[index]
    return graph.add(replace(conv, weight=conv.weight[index], bias=bias), *source.inputs, site=source.site)
