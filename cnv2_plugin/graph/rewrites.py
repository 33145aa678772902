"""Applying exact rewrites: each looks at one node and gives the name of a value that equals the node's, or None.

A rewrite adds nodes and never changes or removes any; :func:`apply` puts the new value in the old one's place.
"""

from collections.abc import Sequence

from .ir import Graph, Node, Rewrite
from .rewrite_convs import fold_affine
from .rewrite_gathers import absorb_permutation, join_gathers, permute_rows, sink_permutation

CLEAN_UP: tuple[Rewrite, ...] = (join_gathers, sink_permutation, fold_affine, absorb_permutation, permute_rows)
"""Rewrites that never make a graph slower; they are applied until none fits."""


def apply(graph: Graph, rewrite: Rewrite, node: Node) -> bool:
    """Rewrite one node in place; return whether the rewrite fitted."""
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
