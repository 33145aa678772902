"""Several output rows at once, for kernels that want more output channels than a group has."""

from typing import Optional

from ..graph import Conv, Graph, Node, TiledConv


def tile_rows(graph: Graph, node: Node, rows: int) -> Optional[int]:
    """Compute ``rows`` rows as output channels of one taller and sparser convolution, then put them in their places.

    Costs ``(kh + rows - 1) / kh`` times the multiply-adds, and has ``rows`` times the outputs in every group.
    """
    conv = node.op
    if not isinstance(conv, Conv) or conv.weight.size(2) == 1 or conv.dilation != (1, 1):
        return None
    return graph.add(TiledConv(conv, rows), *node.inputs)
