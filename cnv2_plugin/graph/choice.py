"""Which implementation a layer gets: rules read off measurements, first match wins.

Each row is the implementation that was fastest for most layers that it covers, measured layer by layer on
condensenetv2_a, _b and _c at 224, one thread, batch 1, on a processor with AVX2 (AMD EPYC).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Optional

from .implementations import added_parameters, check_choices, implement, layer_kind, prepared
from .ir import Graph, Node, Rewrite
from .ops import Conv, Gather, ScatterSum
from .rewrite_gathers import CHANNELWISE, gather_by_conv, halve_permutation


@dataclass(frozen=True)
class Layer:
    """What a rule looks at: channels of a dense convolution in a layer's place, outputs a group, pixels of the map."""

    kind: str
    inputs: int
    outputs: int
    group_outputs: int
    pixels: int


@dataclass(frozen=True)
class Rule:
    """One row: an implementation, and the layers that it is for, with at most so many weights, were they dense.

    ``aligned`` says whether the outputs are a multiple of 8, ``inputs_aligned`` the same of the inputs.
    """

    kind: str
    implementation: str
    max_weights: float = inf
    max_inputs: float = inf
    max_group_outputs: float = inf
    max_pixels: float = inf
    aligned: Optional[bool] = None
    inputs_aligned: Optional[bool] = None

    def fits(self, layer: Layer) -> bool:
        """Return whether a layer is covered."""
        return (
            layer.kind == self.kind
            and layer.inputs * layer.outputs <= self.max_weights
            and layer.inputs <= self.max_inputs
            and layer.group_outputs <= self.max_group_outputs
            and layer.pixels <= self.max_pixels
            and self.aligned in (None, layer.outputs % 8 == 0)
            and self.inputs_aligned in (None, layer.inputs % 8 == 0)
        )


_ONNXRUNTIME = (
    Rule('select', 'dense-apart', max_weights=1300, inputs_aligned=False),
    Rule('select', 'dense', max_weights=1300),
    Rule('select', 'padded', max_pixels=100),
    Rule('select', 'group'),
    Rule('spatial', 'depthwise-sum', max_group_outputs=2),
    Rule('spatial', 'columns', max_group_outputs=16),
    Rule('spatial', 'group'),
    Rule('reactivate', 'dense', max_inputs=8),
    Rule('reactivate', 'dense-plain', max_inputs=16, aligned=False),
    Rule('reactivate', 'dense', max_inputs=16),
    Rule('reactivate', 'dense-plain', max_inputs=32),
    Rule('reactivate', 'split'),
)
_OPENVINO = (
    *(rule for rule in _ONNXRUNTIME if rule.kind != 'spatial'),
    Rule('spatial', 'depthwise-sum', max_group_outputs=2),
    Rule('spatial', 'merged2', max_group_outputs=4),
    Rule('spatial', 'group'),
)
_WITHOUT_GATHER = (Rule('select', 'dense'), Rule('spatial', 'group'), Rule('reactivate', 'dense'))

RULES: Mapping[str, tuple[Rule, ...]] = {'onnxruntime': _ONNXRUNTIME, 'openvino': _OPENVINO, 'ncnn': _WITHOUT_GATHER}
"""Rules by runtime."""
RUNTIME_WORKAROUNDS: Mapping[str, Rewrite] = {'ncnn': gather_by_conv, 'openvino': halve_permutation}
"""What is done wherever it fits once implementations are chosen: ncnn has no gather, and OpenVINO misreads some."""
MAX_GROWTH: Mapping[str, float] = {'onnxruntime': 0.2, 'openvino': 0.2, 'ncnn': inf}
"""Share of the condensed parameters by which zeros filled in may enlarge a model; ncnn has no channel gather."""


def choose(
    graph: Graph,
    size: tuple[int, int],
    runtime: str = 'onnxruntime',
    asked: Optional[Mapping[str, str]] = None,
    allowance: float = inf,
) -> dict[str, str]:
    """Return an implementation for every layer of a graph.

    ``size`` is height and width of its input. Implementations ``asked`` for are taken whatever they add; elsewhere,
    where zeros filled in go beyond ``allowance`` constants, the layers that add most keep their groups.

    Raises:
        ValueError: there are no rules for the runtime, or ``asked`` names an unknown layer or implementation.
    """
    if runtime not in RULES:
        raise ValueError(f'no rules choose for the runtime {runtime!r}; there are {", ".join(RULES)}.')
    asked = asked or {}
    check_choices(graph, asked)
    sizes = graph.sizes(*size)
    layers = {node.layer: layer_of(graph, node, sizes[node.id]) for node in graph.layers()}
    chosen = {
        name: asked.get(name) or next(rule.implementation for rule in RULES[runtime] if rule.fits(layer))
        for name, layer in layers.items()
    }
    if allowance == inf:
        return chosen
    ready = prepared(graph)
    added = {name: added_parameters(ready, name, chosen[name]) for name in chosen}
    excess = implement(graph, chosen)[0].parameters() - graph.parameters() - allowance
    for name in sorted(set(chosen) - set(asked), key=lambda name: -added[name]):
        if excess > 0 and added[name] > 0:
            del chosen[name]
            excess -= added[name]
    return chosen


def layer_of(graph: Graph, node: Node, size: tuple[int, int]) -> Layer:
    """Return the figures of a layer whose result has height and width ``size``.

    Raises:
        TypeError: the node is no layer with a choice.
    """
    reactivates = isinstance(node.op, ScatterSum)
    conv = graph.source(node).op if reactivates else node.op
    if not isinstance(conv, Conv):
        raise TypeError(f'{node.layer} is no convolution, nor an index layer behind one.')
    gather, _ = graph.above(node, CHANNELWISE)
    source = gather.inputs[0] if isinstance(gather.op, Gather) else node.inputs[0]
    inputs = conv.in_channels if reactivates else graph.channels(source)
    return Layer(layer_kind(node), inputs, graph.channels(node.id), conv.out_channels // conv.groups, size[0] * size[1])
