"""A portable way to choose the memory layout in which a runtime computes a 1x1 convolution."""

from dataclasses import replace
from typing import Optional

from ..graph import Conv, Graph, Node


def use_plain_layout(graph: Graph, node: Node) -> Optional[int]:
    """Compute on ``(N, C, HW)``: runtimes block channels of four-dimensional convolutions only."""
    if not isinstance(node.op, Conv) or not node.op.is_pointwise or node.op.plain:
        return None
    return graph.add(replace(node.op, plain=True), *node.inputs)
