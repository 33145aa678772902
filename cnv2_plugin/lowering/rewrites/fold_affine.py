"""``Affine(Conv(x))`` is a convolution with scaled rows and a bias."""

from dataclasses import replace
from typing import Optional

import torch

from ..graph import Affine, Conv, Graph, Node


def fold_affine(graph: Graph, node: Node) -> Optional[int]:
    """Fold a normalisation into the convolution in front of it."""
    if not isinstance(node.op, Affine):
        return None
    source = graph.source(node)
    if not isinstance(source.op, Conv) or not graph.is_only_read_by(source.id, node):
        return None
    conv, scale, shift = source.op, node.op.scale, node.op.shift
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    folded = replace(conv, weight=conv.weight * scale.view(-1, 1, 1, 1), bias=bias * scale + shift)
    return graph.add(folded, *source.inputs, site=source.site)
