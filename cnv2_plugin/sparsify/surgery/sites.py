"""Where a traced module reuses features: concatenations and residual additions with an older and a newer side."""

import operator
from dataclasses import dataclass
from typing import Optional, TypeGuard

import torch
from torch import fx, nn

from ...layers import GroupSparseConv2d

KINDS = ('dense', 'split', 'cross-stage', 'residual')
"""Concatenations of a feature and what was computed from it; of one half of a tensor, untouched, and what was computed
from the other; as split, but the short path is one convolution; additions to a shortcut."""

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_VIEWS = (operator.getitem, torch.chunk, torch.split, torch.tensor_split)
_VIEW_METHODS = ('chunk', 'split', 'tensor_split', 'contiguous', 'narrow')


@dataclass(frozen=True)
class Site:
    """One reuse of features."""

    kind: str  # of KINDS
    node: fx.Node  # the concatenation or addition
    earlier: tuple[fx.Node, ...]  # what is to be reactivated: nodes that are concatenated in that order
    later: fx.Node  # the features that reactivate it


def find_sites(graph: fx.Graph, module: nn.Module) -> list[Site]:
    """List the reuses in the graph of a module, whose nodes have a ``shape`` in ``meta``, in the order of execution."""
    ways = _Ways(graph, module)
    return [site for node in graph.nodes if (site := _site(node, ways)) is not None]


def concatenated(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the features that a node concatenates over channels; empty where it does not."""
    if node.op != 'call_function' or node.target not in (torch.cat, torch.concat, torch.concatenate):
        return ()
    tensors = node.args[0] if node.args else node.kwargs.get('tensors', ())
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get('dim', 0)
    if dim not in (1, -3) or not isinstance(tensors, (list, tuple)):
        return ()
    return tuple(tensors) if all(_is_feature(t) for t in tensors) else ()


def _site(node: fx.Node, ways: '_Ways') -> Optional[Site]:
    tensors = concatenated(node)
    if len(tensors) > 2:
        *old, new = tensors
        wholes = (n for n in ways.nodes if concatenated(n) == tuple(old))
        dense = any(ways.convolutions(whole, new) >= 1 for whole in wholes)
        return Site('dense', node, tuple(old), new) if dense else None
    pair = tensors or _added(node)
    for earlier, later in (pair, pair[::-1]) if len(pair) == 2 else ():
        kind = _kind_of_pair(earlier, later, ways)
        if kind and (tensors or kind == 'dense'):
            return Site(kind if tensors else 'residual', node, (earlier,), later)
    return None


def _added(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two features of one shape that a node adds; empty where it does not."""
    if node.op != 'call_function' or node.target not in _ADDITIONS or len(node.args) != 2:
        return ()
    a, b = node.args
    return (a, b) if _is_feature(a) and _is_feature(b) and a.meta['shape'] == b.meta['shape'] else ()


def _kind_of_pair(earlier: fx.Node, later: fx.Node, ways: '_Ways') -> str:
    if ways.convolutions(earlier, later) >= 1:
        return 'dense'
    source = _source_of_view(earlier)
    if source is not earlier and ways.convolutions(source, later) >= 1:
        return 'split'
    for source in ways.ancestors(earlier):
        if ways.convolutions(source, earlier) == 1 and ways.convolutions(source, later) >= 3:
            return 'cross-stage'
    return ''


def _source_of_view(node: fx.Node) -> fx.Node:
    """The tensor that a node is an untouched part of."""
    while (node.op == 'call_function' and node.target in _VIEWS) or (
        node.op == 'call_method' and node.target in _VIEW_METHODS
    ):
        node = node.all_input_nodes[0]
    return node


def _is_feature(value: object) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and len(value.meta.get('shape', ())) == 4


class _Ways:
    """How many convolutions lie between two nodes of a graph."""

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.nodes = list(graph.nodes)
        self.module = module
        self.weights = {node: _convolutions_in(node, module) for node in self.nodes}
        self.reached: dict[fx.Node, dict[fx.Node, int]] = {}

    def convolutions(self, start: fx.Node, end: fx.Node) -> int:
        """Most convolutions on a way from ``start`` to ``end``; -1 where there is no way.

        A ``start`` that is an ``nn.Identity`` of another node stands for that node: networks write shortcuts so.
        """
        while type(called(start, self.module)) is nn.Identity:
            start = start.all_input_nodes[0]
        return self._from(start).get(end, -1)

    def ancestors(self, node: fx.Node) -> list[fx.Node]:
        """Nodes with a way to ``node``, the nearest first."""
        found = list(node.all_input_nodes)
        for current in found:
            found.extend(n for n in current.all_input_nodes if n not in found)
        return found

    def _from(self, start: fx.Node) -> dict[fx.Node, int]:
        if start not in self.reached:
            counts = {start: 0}
            for node in self.nodes[self.nodes.index(start) + 1 :]:
                before = [counts[n] for n in node.all_input_nodes if n in counts]
                if before:
                    counts[node] = max(before) + self.weights[node]
            del counts[start]
            self.reached[start] = counts
        return self.reached[start]


def _convolutions_in(node: fx.Node, module: nn.Module) -> int:
    layer = called(node, module)
    return 1 if isinstance(layer, GroupSparseConv2d) else convolutions_of(layer) if layer else 0


def called(node: fx.Node, module: nn.Module) -> Optional[nn.Module]:
    """Return the module inside ``module`` that a node calls; None where it calls none."""
    return module.get_submodule(str(node.target)) if node.op == 'call_module' else None


def convolutions_of(module: nn.Module) -> int:
    """Count the convolutions in a module."""
    return sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in module.modules())
