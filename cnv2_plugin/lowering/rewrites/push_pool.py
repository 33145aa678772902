"""Average pooling before what is linear, at a fraction of the pixels."""

from typing import Optional

from ..graph import Add, AveragePool, Concat, Conv, Gather, Graph, Node, ScatterSum


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
    return graph.add(op, *(graph.add(node.op, x) for x in source.inputs), site=source.site)
