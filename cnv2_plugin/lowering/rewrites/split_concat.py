"""A 1x1 convolution of concatenated maps as the sum of one for each map."""

from dataclasses import replace
from typing import Optional

from ..graph import Add, Affine, Concat, Conv, Graph, Node, Pointwise


def split_concat(graph: Graph, node: Node) -> Optional[int]:
    """``Conv(f(Concat(x, y)))`` is ``Conv(f(x)) + Conv(f(y))`` for normalisations and activations ``f``.

    Runtimes that block channels concatenate blocks only; maps of other widths stay blocked when they stay apart.
    """
    conv = node.op
    if not isinstance(conv, Conv) or not conv.is_pointwise or conv.groups > 1:
        return None
    chain, above = [], graph.source(node)
    while isinstance(above.op, (Affine, Pointwise)):
        chain.append(above.op)
        above = graph.source(above)
    if not isinstance(above.op, Concat):
        return None
    total, start = None, 0
    for value in above.inputs:
        part = slice(start, start + graph.channels(value))
        start = part.stop
        for op in reversed(chain):
            value = graph.add(Affine(op.scale[part], op.shift[part]) if isinstance(op, Affine) else op, value)
        bias = conv.bias if total is None else None
        value = graph.add(replace(conv, weight=conv.weight[:, part], bias=bias), value)
        total = value if total is None else graph.add(Add(), value, total)
    return total
