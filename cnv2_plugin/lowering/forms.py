"""The named forms that a layer can take, and how a graph is brought into chosen ones."""

from collections.abc import Callable, Mapping
from functools import partial

from .graph import Affine, Conv, Gather, Graph, Node, Pointwise, ScatterSum
from .rewrites import (
    Rewrite,
    absorb_into_conv,
    apply,
    clean_up,
    depthwise_sum,
    fill_groups,
    gather_once,
    join_gathers,
    merge_gathered,
    merge_groups,
    pad_groups,
    push_pool,
    raise_gather,
    scatter_dense,
    scatter_levels,
    scatter_split,
    split_columns,
    split_concat,
    swap_gather,
    use_plain_layout,
)

Form = Callable[[Graph, str], bool]


def role(node: Node, graph: Graph) -> str:
    """What a site does: ``'select'`` (LGC), ``'reactivate'`` (SFR) or ``'spatial'`` (any other group convolution)."""
    if isinstance(node.op, ScatterSum):
        return 'reactivate'
    return 'select' if isinstance(node.op, Conv) and node.op.weight.shape[2:] == (1, 1) else 'spatial'


def site(graph: Graph, name: str) -> Node:
    """The node of a site.

    Raises:
        ValueError: there is none of that name.
    """
    for node in graph.sites():
        if node.site == name:
            return node
    known = ', '.join(node.site for node in graph.sites()) or 'none'
    raise ValueError(f'{name!r} is no layer with a choice of forms here; those are: {known}.')


def _keep(graph: Graph, name: str) -> bool:
    return True


def _single(graph: Graph, name: str, rewrite: Rewrite) -> bool:
    return apply(graph, rewrite, site(graph, name))


def _gather_last(graph: Graph, name: str) -> bool:
    """Normalise and activate all channels, then gather: swap the gather down to the convolution."""
    while True:
        above = graph.source(site(graph, name))
        chain = []
        while isinstance(above.op, (Affine, Pointwise)):
            chain.append(above)
            above = graph.source(above)
        if not isinstance(above.op, Gather):
            return False
        if not chain:
            return True
        if not apply(graph, swap_gather, chain[-1]):
            return False


def _dense(graph: Graph, name: str) -> bool:
    return _gather_last(graph, name) and _single(graph, name, absorb_into_conv)


def _dense_apart(graph: Graph, name: str) -> bool:
    """Dense, with one convolution for each of several maps that are concatenated only to be read."""
    if not _dense(graph, name):
        return False
    clean_up(graph)
    _single(graph, name, split_concat)
    return True


def _widened(graph: Graph, name: str, rewrite: Rewrite) -> bool:
    return _gather_last(graph, name) and _single(graph, name, rewrite) and _gather_first(graph, name)


def _gather_first(graph: Graph, name: str) -> bool:
    """Gather, then normalise and activate: swap the gather above both."""
    while True:
        gather = graph.source(site(graph, name))
        while not isinstance(gather.op, Gather):
            if not isinstance(gather.op, (Affine, Pointwise)):
                return False
            gather = graph.source(gather)
        if not apply(graph, raise_gather, gather):
            return True


def _plain(form: Form) -> Form:
    return lambda graph, name: form(graph, name) and _single(graph, name, use_plain_layout)


def _plain_rows(form: Form) -> Form:
    """The form of an index layer with every convolution that it needs in plain layout."""

    def plain(graph: Graph, name: str) -> bool:
        before = set(graph.nodes)
        if not form(graph, name):
            return False
        for node in [graph[i] for i in set(graph.nodes) - before]:
            apply(graph, use_plain_layout, node)
        return True

    return plain


FORMS: dict[str, dict[str, Form]] = {
    'select': {
        'group': _keep,
        'group-plain': _plain(_keep),
        'padded': partial(_widened, rewrite=pad_groups),
        'merged2': partial(_widened, rewrite=partial(merge_gathered, count=2)),
        'merged3': partial(_widened, rewrite=partial(merge_gathered, count=3)),
        'merged4': partial(_widened, rewrite=partial(merge_gathered, count=4)),
        'dense': _dense,
        'dense-plain': _plain(_dense),
        'dense-apart': _dense_apart,
    },
    'spatial': {
        'group': _keep,
        'merged2': partial(_single, rewrite=partial(merge_groups, count=2)),
        'merged3': partial(_single, rewrite=partial(merge_groups, count=3)),
        'merged4': partial(_single, rewrite=partial(merge_groups, count=4)),
        'columns': partial(_single, rewrite=split_columns),
        'depthwise-sum': partial(_single, rewrite=depthwise_sum),
        'dense': partial(_single, rewrite=fill_groups),
    },
    'reactivate': {
        'split': partial(_single, rewrite=scatter_split),
        'split-plain': _plain_rows(partial(_single, rewrite=scatter_split)),
        'levels': partial(_single, rewrite=scatter_levels),
        'dense': partial(_single, rewrite=scatter_dense),
        'dense-plain': _plain_rows(partial(_single, rewrite=scatter_dense)),
    },
}
FALLBACK = {'select': 'group', 'spatial': 'group', 'reactivate': 'levels'}
"""Forms that every layer can take."""


def with_forms(graph: Graph, choices: Mapping[str, str]) -> tuple[Graph, dict[str, str]]:
    """A copy of a graph with every site in its chosen form, cleaned up.

    Args:
        graph: description of a condensed part.
        choices: form by site; a form that a layer cannot take, or none, means the fallback of its role.

    Returns:
        The new graph, and the form that each site really has.

    Raises:
        ValueError: an unknown site or form.
    """
    graph = graph.copy()
    clean_up(graph)
    clean_up(graph, [push_pool])
    roles = {node.site: role(node, graph) for node in graph.sites()}
    for name, form in choices.items():
        kind = roles.get(name) or role(site(graph, name), graph)
        if form not in FORMS[kind]:
            raise ValueError(f'{name} cannot take the form {form!r}; a {kind} layer takes {", ".join(FORMS[kind])}.')
    taken = {}
    for name, kind in roles.items():
        for form in (choices.get(name, FALLBACK[kind]), FALLBACK[kind], 'group'):
            attempt = graph.copy()
            if form in FORMS[kind] and FORMS[kind][form](attempt, name):
                graph, taken[name] = attempt, form
                break
        else:
            taken[name] = 'scatter'
    clean_up(graph)
    clean_up(graph, [gather_once, join_gathers])
    return graph, taken
