"""Exact rewrites that move, join and absorb channel gathers."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor, nn

from .ir import Add, Affine, AveragePool, Concat, Conv, Gather, Graph, Node, Pointwise, ScatterSum


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


def gather_once(graph: Graph, node: Node) -> Optional[int]:
    """Work on every gathered channel once and copy it afterwards, where that is less to do.

    ``node`` ends a chain of normalisation and activation behind a gather with repetitions. Each module of the chain
    is a pass over the channels (activations other than ReLU are two), and so is the second gather.
    """
    if not isinstance(node.op, Pointwise) or any(
        isinstance(reader.op, (Affine, Pointwise)) for reader in graph.consumers(node.id)
    ):
        return None
    chain, above = [node], graph.source(node)
    while isinstance(above.op, (Affine, Pointwise)):
        chain.append(above)
        above = graph.source(above)
    if not isinstance(above.op, Gather):
        return None
    index = above.op.index
    once, copies = index.unique(return_inverse=True)
    passes = sum(2 if isinstance(n.op, Pointwise) and not isinstance(n.op.module, nn.ReLU) else 1 for n in chain)
    if passes * (index.numel() - once.numel()) <= once.numel():
        return None
    first = torch.empty_like(once)
    first[copies] = torch.arange(index.numel())
    value = graph.add(Gather(once), *above.inputs)
    for part in reversed(chain):
        op = part.op
        if isinstance(op, Affine):
            scale, shift = op.scale[first], op.shift[first]
            if not torch.equal(scale[copies], op.scale) or not torch.equal(shift[copies], op.shift):
                return None
            op = Affine(scale, shift)
        value = graph.add(op, value)
    return graph.add(Gather(copies), value)


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


def gather_by_conv(graph: Graph, node: Node) -> Optional[int]:
    """A gather as a 0/1 1x1 convolution, for runtimes that have no gather; neighbouring channels stay a slice."""
    if not isinstance(node.op, Gather):
        return None
    index, channels = node.op.index, graph.channels(node.inputs[0])
    if torch.equal(index - index[0], torch.arange(index.numel())):
        return None
    weight = torch.zeros(index.numel(), channels, 1, 1, dtype=torch.float64)
    weight[torch.arange(index.numel()), index] = 1
    return graph.add(Conv(weight), *node.inputs)


def halve_permutation(graph: Graph, node: Node) -> Optional[int]:
    """A permutation as the concatenation of two gathers, unless group convolutions read it.

    OpenVINO (2026.4) takes any permutation in front of a dense or depthwise convolution for a reversal of the channels,
    and computes something else then.
    """
    if not isinstance(node.op, Gather) or not is_permutation(node.op.index, graph.channels(node.inputs[0])):
        return None
    if node.op.index.numel() < 2 or graph.consumers(node.id) and all(map(_mixes_groups, graph.consumers(node.id))):
        return None
    halves = [graph.add(Gather(index), *node.inputs) for index in node.op.index.tensor_split(2)]
    return graph.add(Concat(), *halves)


def _mixes_groups(node: Node) -> bool:
    return isinstance(node.op, Conv) and node.op.groups > 1 and not node.op.is_depthwise


def raise_gather(graph: Graph, node: Node) -> Optional[int]:
    """``Gather(f(x))`` is ``f(Gather(x))`` for a normalisation or an activation ``f``."""
    if not isinstance(node.op, Gather):
        return None
    source = graph.source(node)
    if not isinstance(source.op, (Affine, Pointwise)):
        return None
    op = source.op
    if isinstance(op, Affine):
        op = Affine(op.scale[node.op.index], op.shift[node.op.index])
    return graph.add(op, graph.add(node.op, *source.inputs))


def permute_rows(graph: Graph, node: Node) -> Optional[int]:
    """Gathering the outputs of a convolution of one group, activated or not, only selects its rows."""
    if not isinstance(node.op, Gather):
        return None
    source, reader = graph.source(node), node
    activation = source.op if isinstance(source.op, Pointwise) else None
    if activation and graph.is_only_read_by(source.id, node):
        source, reader = graph.source(source), source
    if not isinstance(source.op, Conv) or source.op.groups > 1 or not graph.is_only_read_by(source.id, reader):
        return None
    conv, index = source.op, node.op.index
    bias = None if conv.bias is None else conv.bias[index]
    value = graph.add(replace(conv, weight=conv.weight[index], bias=bias), *source.inputs, layer=source.layer)
    return value if activation is None else graph.add(activation, value)


def push_pool(graph: Graph, node: Node) -> Optional[int]:
    """The pool of a sum, a concatenation, a gather or a 1x1 convolution is the same of the pools.

    Only where nothing else reads what is pooled, so that the large map need not be made at all.
    """
    if not isinstance(node.op, AveragePool):
        return None
    source = graph.source(node)
    if not graph.is_only_read_by(source.id, node):
        return None
    op = source.op
    linear = isinstance(op, (Add, Concat, Gather, ScatterSum)) or isinstance(op, Conv) and op.is_pointwise
    if not linear or isinstance(op, Gather) and op.index.numel() < graph.channels(source.inputs[0]):
        return None
    return graph.add(op, *(graph.add(node.op, x) for x in source.inputs), layer=source.layer)
