"""Exact rewrites: each looks at one node and gives the name of a value that equals the node's, or None.

A rewrite adds nodes and never changes or removes any; :func:`apply` puts the new value in the old one's place.
"""

from collections.abc import Callable, Sequence
from typing import Optional

from ..graph import Graph, Node
from .columns import split_columns
from .depthwise_sum import depthwise_sum
from .fold_affine import fold_affine
from .gathers import (
    absorb_into_conv,
    absorb_permutation,
    gather_by_conv,
    gather_once,
    halve_permutation,
    join_gathers,
    permute_rows,
    raise_gather,
    sink_permutation,
    swap_gather,
)
from .groups import fill_groups, merge_gathered, merge_groups, pad_groups
from .layout import use_plain_layout
from .push_pool import push_pool
from .scatter import scatter_dense, scatter_levels, scatter_split
from .split_concat import split_concat

Rewrite = Callable[[Graph, Node], Optional[int]]

CLEAN_UP: tuple[Rewrite, ...] = (join_gathers, sink_permutation, fold_affine, absorb_permutation, permute_rows)
"""Rewrites that never make a graph slower; they are applied until none fits."""


def apply(graph: Graph, rewrite: Rewrite, node: Node) -> bool:
    """Rewrite one node in place; returns whether the rewrite fitted."""
    value = rewrite(graph, node)
    if value is None:
        return False
    graph.replace(node.id, value)
    return True


def clean_up(graph: Graph, rewrites: Sequence[Rewrite] = CLEAN_UP) -> None:
    """Apply rewrites wherever they fit until none does."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes.values()):
            if node.id in graph.nodes and any(apply(graph, rewrite, graph[node.id]) for rewrite in rewrites):
                changed = True


__all__ = [
    'CLEAN_UP',
    'Rewrite',
    'absorb_into_conv',
    'absorb_permutation',
    'apply',
    'clean_up',
    'depthwise_sum',
    'fill_groups',
    'fold_affine',
    'gather_by_conv',
    'gather_once',
    'halve_permutation',
    'join_gathers',
    'merge_gathered',
    'merge_groups',
    'pad_groups',
    'permute_rows',
    'push_pool',
    'raise_gather',
    'scatter_dense',
    'scatter_levels',
    'scatter_split',
    'sink_permutation',
    'split_concat',
    'split_columns',
    'swap_gather',
    'use_plain_layout',
]
