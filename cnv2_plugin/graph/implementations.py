"""The implementations that a layer can have in standard operators, and bringing a graph into chosen ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from . import rewrite_convs as convs
from . import rewrite_gathers as gathers
from .ir import Graph, Node, Rewrite
from .ops import Conv, Gather, ScatterSum
from .rewrite_gathers import CHANNELWISE

Step = Callable[[Graph, str], bool]
CLEAN_UP: tuple[Rewrite, ...] = (
    gathers.join_gathers,
    gathers.sink_permutation,
    convs.fold_affine,
    gathers.absorb_permutation,
    gathers.permute_rows,
)
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


def layer_kind(node: Node) -> str:
    """Return ``'select'`` (LGC), ``'reactivate'`` (SFR) or ``'spatial'`` (any other group convolution)."""
    if isinstance(node.op, ScatterSum):
        return 'reactivate'
    return 'select' if isinstance(node.op, Conv) and node.op.weight.shape[2:] == (1, 1) else 'spatial'


def _layer(graph: Graph, name: str) -> Node:
    return next(node for node in graph.layers() if node.layer == name)


def _step(rewrite: Rewrite) -> Step:
    """Rewrite the layer itself."""
    return lambda graph, name: apply(graph, rewrite, _layer(graph, name))


def _gather_last(graph: Graph, name: str) -> bool:
    """Normalise and activate all channels, then gather: swap the gather down to the convolution."""
    while True:
        gather, chain = graph.above(_layer(graph, name), CHANNELWISE)
        if not chain or not isinstance(gather.op, Gather):
            return isinstance(gather.op, Gather)
        if not apply(graph, gathers.swap_gather, chain[-1]):
            return False


def _gather_first(graph: Graph, name: str) -> bool:
    """Gather, then normalise and activate: swap the gather above both."""
    while True:
        gather, _ = graph.above(_layer(graph, name), CHANNELWISE)
        if not isinstance(gather.op, Gather):
            return False
        if not apply(graph, gathers.raise_gather, gather):
            return True


def _split_concat(graph: Graph, name: str) -> bool:
    """One convolution for each of several maps that are concatenated only to be read; a single one stays."""
    clean_up(graph)
    apply(graph, convs.split_concat, _layer(graph, name))
    return True


_ABSORBED = (_gather_last, _step(gathers.absorb_into_conv))
IMPLEMENTATIONS: dict[str, dict[str, tuple[Step, ...]]] = {
    'select': {
        'group': (),
        'padded': (_gather_last, _step(convs.pad_groups), _gather_first),
        'dense': _ABSORBED,
        'dense-apart': (*_ABSORBED, _split_concat),
    },
    'spatial': {
        'group': (),
        'merged2': (_step(partial(convs.merge_groups, count=2)),),
        'columns': (_step(convs.split_columns),),
        'depthwise-sum': (_step(convs.depthwise_sum),),
    },
    'reactivate': {
        'split': (_step(gathers.scatter_split),),
        'levels': (_step(gathers.scatter_levels),),
        'dense': (_step(gathers.scatter_dense),),
        'dense-plain': (_step(gathers.scatter_dense), _step(convs.use_plain_layout)),
    },
}
"""Steps to an implementation, which a layer can have where all of them fit."""
FALLBACK = {'select': 'group', 'spatial': 'group', 'reactivate': 'levels'}
"""Implementations that every layer can have."""


def check_choices(graph: Graph, choices: Mapping[str, str]) -> None:
    """Raise a ValueError unless every chosen implementation is one that its layer can have."""
    kinds = {node.layer: layer_kind(node) for node in graph.layers()}
    for name, chosen in choices.items():
        if name not in kinds:
            known = ', '.join(kinds) or 'none'
            raise ValueError(f'{name!r} is no layer with a choice of implementations here; those are: {known}.')
        if chosen not in IMPLEMENTATIONS[kinds[name]]:
            raise ValueError(
                f'{name} cannot have the implementation {chosen!r}; a {kinds[name]} layer takes '
                f'{", ".join(IMPLEMENTATIONS[kinds[name]])}.'
            )


def prepared(graph: Graph) -> Graph:
    """Return a cleaned-up copy of a graph, average pools moved before what is linear: ready for implementations."""
    graph = graph.copy()
    clean_up(graph)
    clean_up(graph, [gathers.push_pool])
    return graph


def implement(graph: Graph, choices: Mapping[str, str]) -> tuple[Graph, dict[str, str]]:
    """Return a copy of a graph with every layer in its chosen implementation, and those that they really have.

    One that a layer cannot have, or none, means the fallback of its kind.

    Raises:
        ValueError: an unknown layer or implementation.
    """
    graph = prepared(graph)
    check_choices(graph, choices)
    taken = {}
    for name, kind in {node.layer: layer_kind(node) for node in graph.layers()}.items():
        graph, taken[name] = _implement_one(graph, name, kind, choices.get(name, FALLBACK[kind]))
    clean_up(graph)
    clean_up(graph, [gathers.gather_once, gathers.join_gathers])
    return graph, taken


def added_parameters(graph: Graph, name: str, chosen: str) -> int:
    """Return how many more constants an implementation of one layer has than the fallback, in a prepared graph."""
    kind = layer_kind(_layer(graph, name))
    other, fallback = (_implement_one(graph, name, kind, wanted)[0] for wanted in (chosen, FALLBACK[kind]))
    return other.parameters() - fallback.parameters()


def _implement_one(graph: Graph, name: str, kind: str, chosen: str) -> tuple[Graph, str]:
    for implementation in (chosen, FALLBACK[kind], 'group'):
        attempt = graph.copy()
        steps = IMPLEMENTATIONS[kind].get(implementation)
        if steps is not None and all(step(attempt, name) for step in steps):
            return attempt, implementation
    return graph, 'scatter'
