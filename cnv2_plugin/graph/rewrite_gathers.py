"""Exact rewrites that move, join and absorb channel gathers, and of the index layer behind a reactivation."""

from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor, nn

from .ir import Graph, Node, rewrites
from .ops import Add, Affine, AveragePool, Concat, Conv, Gather, Pointwise, ScatterSum

CHANNELWISE = (Affine, Pointwise)


def is_permutation(index: Tensor, channels: int) -> bool:
    """Whether an index names every one of ``channels`` once."""
    return torch.equal(index.sort().values, torch.arange(channels))


def permutation_before(graph: Graph, node: Node) -> Optional[Node]:
    """The permutation that a node reads, or None."""
    source = graph.source(node)
    permutes = isinstance(source.op, Gather) and is_permutation(source.op.index, graph.channels(source.inputs[0]))
    return source if permutes else None


def spread(affine: Affine, index: Tensor, channels: int) -> Optional[Affine]:
    """A normalisation of gathered channels as one of all of them; None where it treats copies of one differently."""
    scale, shift = affine.scale.new_zeros(channels), affine.shift.new_zeros(channels)
    scale[index], shift[index] = affine.scale, affine.shift
    same = torch.equal(scale[index], affine.scale) and torch.equal(shift[index], affine.shift)
    return Affine(scale, shift) if same else None


@rewrites(Gather)
def join_gathers(graph: Graph, node: Node, gather: Gather) -> Optional[int]:
    """Two gathers in a row are one; a gather of all channels in order is none."""
    source = graph.source(node)
    if isinstance(source.op, Gather):
        return graph.add(Gather(source.op.index[gather.index]), *source.inputs)
    return source.id if torch.equal(gather.index, torch.arange(graph.channels(source.id))) else None


@rewrites(CHANNELWISE, behind=Gather)
def sink_permutation(graph: Graph, node: Node, op: Affine | Pointwise, source: Node) -> Optional[int]:
    """Normalise and activate before a permutation, so that both can merge with the convolution before it."""
    return None if permutation_before(graph, node) is None else swap_gather(graph, node)


@rewrites(CHANNELWISE, behind=Gather)
def swap_gather(graph: Graph, node: Node, op: Affine | Pointwise, source: Node) -> Optional[int]:
    """``f(Gather(x))`` is ``Gather(f(x))`` for a normalisation or an activation ``f``.

    Where a channel is gathered several times, a normalisation must treat its copies alike. Channels that are not
    gathered become zero.
    """
    below = spread(op, source.op.index, graph.channels(source.inputs[0])) if isinstance(op, Affine) else op
    return None if below is None else graph.add(source.op, graph.add(below, *source.inputs))


@rewrites(Pointwise)
def gather_once(graph: Graph, node: Node, op: Pointwise) -> Optional[int]:
    """Work on every gathered channel once and copy it afterwards, where that is less to do.

    ``node`` ends a chain of normalisation and activation behind a gather with repetitions. Each module of the chain
    is a pass over the channels (activations other than ReLU are two), and so is the second gather.
    """
    gather, chain = graph.above(node, CHANNELWISE)
    is_end = not any(isinstance(reader.op, CHANNELWISE) for reader in graph.consumers(node.id))
    if not is_end or not isinstance(gather.op, Gather):
        return None
    ops = [n.op for n in (node, *chain)]
    once, copies = gather.op.index.unique(return_inverse=True)
    passes = sum(2 if isinstance(op, Pointwise) and not isinstance(op.module, nn.ReLU) else 1 for op in ops)
    if passes * (copies.numel() - once.numel()) <= once.numel():
        return None
    value = graph.add(Gather(once), *gather.inputs)
    for part in reversed(ops):
        single = spread(part, copies, once.numel()) if isinstance(part, Affine) else part
        if single is None:
            return None
        value = graph.add(single, value)
    return graph.add(Gather(copies), value)


@rewrites(Conv, behind=Gather)
def absorb_into_conv(graph: Graph, node: Node, conv: Conv, source: Node) -> Optional[int]:
    """``Conv(Gather(x))`` is a convolution of all channels of ``x`` with zeros filled in."""
    weight = conv.dense_weight(source.op.index, graph.channels(source.inputs[0]))
    return graph.add(replace(conv, weight=weight, groups=1), *source.inputs)


@rewrites(Conv)
def absorb_permutation(graph: Graph, node: Node, conv: Conv) -> Optional[int]:
    """A permutation in front of a convolution of one group only permutes its columns."""
    return None if conv.groups > 1 or permutation_before(graph, node) is None else absorb_into_conv(graph, node)


@rewrites(Gather)
def gather_by_conv(graph: Graph, node: Node, gather: Gather) -> Optional[int]:
    """A gather as a 0/1 1x1 convolution, for runtimes that have no gather; neighbouring channels stay a slice."""
    index, places = gather.index, torch.arange(gather.index.numel())
    if torch.equal(index - index[0], places):
        return None
    weight = torch.zeros(index.numel(), graph.channels(node.inputs[0]), 1, 1, dtype=torch.float64)
    weight[places, index] = 1
    return graph.add(Conv(weight), *node.inputs)


@rewrites(Gather)
def halve_permutation(graph: Graph, node: Node, gather: Gather) -> Optional[int]:
    """A permutation as the concatenation of two gathers, unless group convolutions read it.

    OpenVINO (2026.4) takes any permutation in front of a dense or depthwise convolution for a reversal of the channels,
    and computes something else then.
    """
    readers = [reader.op for reader in graph.consumers(node.id)]
    by_groups = readers and all(isinstance(op, Conv) and op.groups > 1 and not op.is_depthwise for op in readers)
    if by_groups or gather.index.numel() < 2 or not is_permutation(gather.index, graph.channels(node.inputs[0])):
        return None
    return graph.add(Concat(), *(graph.add(Gather(half), *node.inputs) for half in gather.index.tensor_split(2)))


@rewrites(Gather, behind=CHANNELWISE)
def raise_gather(graph: Graph, node: Node, gather: Gather, source: Node) -> Optional[int]:
    """``Gather(f(x))`` is ``f(Gather(x))`` for a normalisation or an activation ``f``."""
    op, index = source.op, gather.index
    op = Affine(op.scale[index], op.shift[index]) if isinstance(op, Affine) else op
    return graph.add(op, graph.add(gather, *source.inputs))


@rewrites(Gather)
def permute_rows(graph: Graph, node: Node, gather: Gather) -> Optional[int]:
    """Gathering the outputs of a convolution of one group, activated or not, only selects its rows."""
    source, reader = graph.source(node), node
    activation = source.op if isinstance(source.op, Pointwise) else None
    if activation and graph.is_only_read_by(source.id, node):
        source, reader = graph.source(source), source
    conv, index = source.op, gather.index
    if not isinstance(conv, Conv) or conv.groups > 1 or not graph.is_only_read_by(source.id, reader):
        return None
    bias = None if conv.bias is None else conv.bias[index]
    value = graph.add(replace(conv, weight=conv.weight[index], bias=bias), *source.inputs, layer=source.layer)
    return value if activation is None else graph.add(activation, value)


@rewrites(AveragePool, behind=(Add, Concat, Gather, ScatterSum, Conv))
def push_pool(graph: Graph, node: Node, pool: AveragePool, source: Node) -> Optional[int]:
    """The pool of a sum, a concatenation, a gather or a 1x1 convolution is the same of the pools.

    Only where nothing else reads what is pooled, so that the large map need not be made at all.
    """
    op = source.op
    if not graph.is_only_read_by(source.id, node) or isinstance(op, Conv) and not op.is_pointwise:
        return None
    if isinstance(op, Gather) and op.index.numel() < graph.channels(source.inputs[0]):
        return None
    return graph.add(op, *(graph.add(pool, x) for x in source.inputs), layer=source.layer)


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
