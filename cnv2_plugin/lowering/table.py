"""Which form a layer takes where nobody measured: rules read off measurements, first match wins.

Made from ``cnv2 export --tune onnxruntime`` (``openvino``) of condensenetv2_a, _b and _c at 224, one thread, batch 1:
each row is what the tuner chose for most layers that it covers. The tables of OpenVINO and ncnn, and the first of ONNX
Runtime, are from a processor with AVX2 (AMD EPYC); the second of ONNX Runtime is from one with AVX-512 (Intel Xeon).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Optional

import torch

from .forms import role
from .graph import Affine, Conv, Gather, Graph, Node, Pointwise, ScatterSum
from .rewrites import Rewrite, gather_by_conv, halve_permutation


@dataclass(frozen=True)
class Layer:
    """What a rule looks at.

    Attributes:
        role: see :func:`cnv2_plugin.lowering.forms.role`.
        inputs: channels that a dense convolution in its place would read.
        outputs: channels that it would give.
        group_outputs: outputs of each group.
        height: rows of the result.
        width: columns of the result.
    """

    role: str
    inputs: int
    outputs: int
    group_outputs: int
    height: int
    width: int


@dataclass(frozen=True)
class Rule:
    """One row: a form, and the layers that it is for.

    Attributes:
        role: of the layer.
        form: what to choose.
        max_weights: at most so many weights, were the layer dense.
        max_inputs: at most so many inputs.
        max_group_outputs: at most so many outputs a group.
        max_pixels: at most so many output pixels.
        aligned: outputs are a multiple of 8, or are not; None for either.
        inputs_aligned: the same of the inputs.
    """

    role: str
    form: str
    max_weights: float = inf
    max_inputs: float = inf
    max_group_outputs: float = inf
    max_pixels: float = inf
    aligned: Optional[bool] = None
    inputs_aligned: Optional[bool] = None

    def fits(self, layer: Layer) -> bool:
        """Whether a layer is covered."""
        return (
            layer.role == self.role
            and layer.inputs * layer.outputs <= self.max_weights
            and layer.inputs <= self.max_inputs
            and layer.group_outputs <= self.max_group_outputs
            and layer.height * layer.width <= self.max_pixels
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

_ONNXRUNTIME_AVX512 = (
    *(rule for rule in _ONNXRUNTIME if rule.role == 'select'),
    Rule('spatial', 'depthwise-sum', max_group_outputs=2),
    Rule('spatial', 'columns', max_group_outputs=4),
    Rule('spatial', 'merged2', max_group_outputs=8),
    Rule('spatial', 'columns', max_group_outputs=16),
    Rule('spatial', 'group'),
    Rule('reactivate', 'dense-plain', max_inputs=12),
    Rule('reactivate', 'dense', max_inputs=16),
    Rule('reactivate', 'dense-plain', max_inputs=32),
    Rule('reactivate', 'dense', max_inputs=48),
    Rule('reactivate', 'split-plain', max_inputs=64, max_pixels=100),
    Rule('reactivate', 'split'),
)

_OPENVINO = (
    *(rule for rule in _ONNXRUNTIME if rule.role != 'spatial'),
    Rule('spatial', 'depthwise-sum', max_group_outputs=2),
    Rule('spatial', 'merged2', max_group_outputs=4),
    Rule('spatial', 'group'),
)

_WITHOUT_GATHER = (Rule('select', 'dense'), Rule('spatial', 'group'), Rule('reactivate', 'dense'))

PROCESSORS = ('avx2', 'avx512')
RULES: Mapping[str, Mapping[str, tuple[Rule, ...]]] = {
    'onnxruntime': {'avx2': _ONNXRUNTIME, 'avx512': _ONNXRUNTIME_AVX512},
    'openvino': {'avx2': _OPENVINO},
    'ncnn': {'avx2': _WITHOUT_GATHER},
}
"""Tables by runtime and instruction set; where there is none for a processor, that of AVX2 serves."""
LAST_REWRITES: Mapping[str, Rewrite] = {'ncnn': gather_by_conv, 'openvino': halve_permutation}
"""What is done wherever it fits once forms are chosen: ncnn has no gather, and OpenVINO misreads some."""
MAX_GROWTH: Mapping[str, float] = {'onnxruntime': 0.2, 'openvino': 0.2, 'ncnn': inf}
"""Share of the condensed parameters by which zeros filled in may enlarge a model; ncnn has no channel gather."""


def measured_on(runtime: str, processor: Optional[str] = None) -> str:
    """The instruction set whose table is used for a runtime on a processor.

    Args:
        runtime: of :data:`RULES`.
        processor: of :data:`PROCESSORS`; the one that this program runs on by default.

    Raises:
        ValueError: there is no table for the runtime, or no such processor.
    """
    if runtime not in RULES:
        raise ValueError(f'there is no table of forms for the runtime {runtime!r}; there are {", ".join(RULES)}.')
    if processor is None:
        processor = 'avx512' if 'AVX512' in torch.backends.cpu.get_cpu_capability() else 'avx2'
    if processor not in PROCESSORS:
        raise ValueError(f'processor is {processor!r}; there are tables for {" and ".join(PROCESSORS)}.')
    return processor if processor in RULES[runtime] else 'avx2'


def default_choices(
    graph: Graph, size: tuple[int, int], runtime: str = 'onnxruntime', processor: Optional[str] = None
) -> dict[str, str]:
    """The table's form for every site of a graph that is given maps of ``size``.

    Raises:
        ValueError: as for :func:`measured_on`.
    """
    table = measured_on(runtime, processor)
    rules = RULES[runtime][table]
    choices, sizes = {}, graph.sizes(*size)
    for node in graph.sites():
        layer = layer_of(graph, node, sizes[node.id])
        choices[node.site] = next(rule.form for rule in rules if rule.fits(layer))
    return choices


def layer_of(graph: Graph, node: Node, size: tuple[int, int]) -> Layer:
    """The figures of a site whose result has height and width ``size``.

    Raises:
        TypeError: the node is no site.
    """
    reactivates = isinstance(node.op, ScatterSum)
    conv = graph.source(node).op if reactivates else node.op
    if not isinstance(conv, Conv):
        raise TypeError(f'{node.site} is no convolution, nor an index layer behind one.')
    inputs = conv.in_channels if reactivates else graph.channels(_gathered_from(graph, node))
    return Layer(role(node, graph), inputs, graph.channels(node.id), conv.out_channels // conv.groups, *size)


def _gathered_from(graph: Graph, node: Node) -> int:
    """The value that a site's channels are gathered from, or its input."""
    above = graph.source(node)
    while isinstance(above.op, (Affine, Pointwise)):
        above = graph.source(above)
    return above.inputs[0] if isinstance(above.op, Gather) else node.inputs[0]
