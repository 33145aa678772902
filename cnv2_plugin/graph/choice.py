"""Which implementation a layer gets: rules read off measurements.

Each rule gives the implementation that was fastest for most layers that it covers, measured layer by layer on
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
    """What rules look at: channels of a dense convolution in a layer's place, outputs a group, pixels of the map."""

    kind: str
    inputs: int
    outputs: int
    group_outputs: int
    pixels: int


def _for_onnxruntime(layer: Layer) -> str:
    if layer.kind == 'select':
        if layer.inputs * layer.outputs <= 1300:
            return 'dense' if layer.inputs % 8 == 0 else 'dense-apart'
        return 'padded' if layer.pixels <= 100 else 'group'
    if layer.kind == 'spatial':
        if layer.group_outputs <= 2:
            return 'depthwise-sum'
        return 'columns' if layer.group_outputs <= 16 else 'group'
    if layer.inputs <= 8 or layer.inputs <= 16 and layer.outputs % 8 == 0:
        return 'dense'
    return 'dense-plain' if layer.inputs <= 32 else 'split'


def _for_openvino(layer: Layer) -> str:
    if layer.kind == 'spatial' and layer.group_outputs > 2:
        return 'merged2' if layer.group_outputs <= 4 else 'group'
    return _for_onnxruntime(layer)


def _without_gather(layer: Layer) -> str:
    return 'group' if layer.kind == 'spatial' else 'dense'


RULES = {'onnxruntime': _for_onnxruntime, 'openvino': _for_openvino, 'ncnn': _without_gather}
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
    chosen = {name: asked.get(name) or RULES[runtime](layer) for name, layer in layers.items()}
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
