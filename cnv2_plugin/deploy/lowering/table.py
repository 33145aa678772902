"""Which form a layer takes where nobody measured: rules read off measurements, first match wins.

Made from ``cnv2 export --tune onnxruntime`` (``openvino``) of condensenetv2_a, _b and _c at 224 on an x86-64 processor
with AVX2, one thread, batch 1: each row is what the tuner chose for most layers that it covers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from .forms import role
from .graph import Graph, Node, ScatterSum


@dataclass(frozen=True)
class Rule:
    """One row.

    Attributes:
        role: see :func:`cnv2_plugin.deploy.lowering.forms.role`.
        form: what to choose.
        min_pixels: fits layers with at least so many output pixels.
        max_pixels: fits layers with at most so many.
        max_group_outputs: fits layers with at most so many outputs a group.
    """

    role: str
    form: str
    min_pixels: int = 0
    max_pixels: Optional[int] = None
    max_group_outputs: Optional[int] = None

    def fits(self, kind: str, pixels: int, group_outputs: int) -> bool:
        """Whether a layer of these figures is covered."""
        return (
            kind == self.role
            and pixels >= self.min_pixels
            and (self.max_pixels is None or pixels <= self.max_pixels)
            and (self.max_group_outputs is None or group_outputs <= self.max_group_outputs)
        )


RULES: Mapping[str, tuple[Rule, ...]] = {
    'onnxruntime': (
        Rule('select', 'dense', min_pixels=9000),
        Rule('select', 'padded', max_pixels=100),
        Rule('select', 'group'),
        Rule('spatial', 'depthwise-sum', max_group_outputs=2),
        Rule('spatial', 'merged2', max_group_outputs=4),
        Rule('spatial', 'group'),
        Rule('reactivate', 'dense', min_pixels=700),
        Rule('reactivate', 'split'),
    ),
    'openvino': (
        Rule('select', 'dense', min_pixels=9000),
        Rule('select', 'group'),
        Rule('spatial', 'depthwise-sum', max_group_outputs=2),
        Rule('spatial', 'merged2', max_group_outputs=4),
        Rule('spatial', 'group'),
        Rule('reactivate', 'dense', min_pixels=700),
        Rule('reactivate', 'split'),
    ),
}


def default_choices(graph: Graph, pixels: int, runtime: str = 'onnxruntime') -> dict[str, str]:
    """The table's form for every site of a graph whose layers work on so many pixels.

    Raises:
        ValueError: there is no table for the runtime.
    """
    if runtime not in RULES:
        raise ValueError(f'there is no table of forms for the runtime {runtime!r}; there are {", ".join(RULES)}.')
    return {node.site: _choose(node, graph, pixels, RULES[runtime]) for node in graph.sites()}


def _choose(node: Node, graph: Graph, pixels: int, rules: tuple[Rule, ...]) -> str:
    conv = graph.source(node).op if isinstance(node.op, ScatterSum) else node.op
    kind, outputs = role(node, graph), conv.out_channels // conv.groups
    return next(rule.form for rule in rules if rule.fits(kind, pixels, outputs))
