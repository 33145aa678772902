"""A graph as a small ONNX model, written node by node: what the tuner measures, in a fraction of an export's time."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..graph.ir import Add, Affine, AveragePool, Concat, Conv, Gather, Graph, Input, Op, Pointwise, ScatterSum

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_ACTIVATIONS = {nn.ReLU: 'Relu', nn.Hardswish: 'HardSwish', nn.Hardsigmoid: 'HardSigmoid', nn.Sigmoid: 'Sigmoid'}


def to_onnx(graph: Graph, input_shape: tuple[int, ...], opset: int = 20) -> 'ModelProto':
    """An ONNX model of a graph.

    Opaque modules and rare activations are left out: they are alike in all candidates that the tuner compares.

    Args:
        graph: what to compute.
        input_shape: ``(N, C, H, W)``.
        opset: version of the standard operators.
    """
    from onnx import TensorProto, helper

    writer = _Writer()
    names: dict[int, str] = {}
    sizes = graph.sizes(*input_shape[2:])
    for node in graph.ordered():
        if isinstance(node.op, Input):
            names[node.id] = 'input'
        elif isinstance(node.op, AveragePool):
            source = node.inputs[0]
            names[node.id] = writer.pool(node.op, names[source], graph.channels(source), sizes[source][0])
        else:
            names[node.id] = writer.write(node.op, [names[i] for i in node.inputs])
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            'candidate',
            [helper.make_tensor_value_info('input', TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(names[graph.output], TensorProto.FLOAT, None)],
            writer.constants,
        ),
        opset_imports=[helper.make_opsetid('', opset)],
    )
    model.ir_version = 10
    return model


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def write(self, op: Op, inputs: list[str]) -> str:
        if isinstance(op, Conv):
            return self._conv(op, inputs[0])
        if isinstance(op, Affine):
            zeros = torch.zeros_like(op.scale)
            constants = [self._constant(t) for t in (op.scale, op.shift, zeros, zeros + 1)]
            return self._node('BatchNormalization', [inputs[0], *constants], epsilon=0.0)
        if isinstance(op, Gather):
            return self._gather(op.index, inputs[0])
        if isinstance(op, ScatterSum):
            return self._index_matrix(op, inputs[0])
        if isinstance(op, (Add, Concat)):
            return self._node('Add', inputs) if isinstance(op, Add) else self._node('Concat', inputs, axis=1)
        return self._module(op.module, inputs[0]) if isinstance(op, Pointwise) else inputs[0]

    def pool(self, op: AveragePool, x: str, channels: int, height: int) -> str:
        bands = op.folding(channels, height)
        if bands > 1:
            x = self._node('Reshape', [x, self._constant(torch.tensor([0, channels * bands, -1, 0]))])
        y = self._node('AveragePool', [x], kernel_shape=[op.size] * 2, strides=[op.stride] * 2)
        return y if bands == 1 else self._node('Reshape', [y, self._constant(torch.tensor([0, channels, -1, 0]))])

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        output = f'value_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, tensor: Tensor) -> str:
        from onnx import numpy_helper

        name = f'constant_{len(self.constants)}'
        tensor = tensor if tensor.dtype == torch.int64 else tensor.float()
        self.constants.append(numpy_helper.from_array(tensor.numpy(), name))
        return name

    def _conv(self, op: Conv, x: str) -> str:
        weight = op.weight.flatten(2) if op.plain else op.weight
        inputs = [self._constant(weight), *([] if op.bias is None else [self._constant(op.bias)])]
        if not op.plain:
            return self._node(
                'Conv', [x, *inputs], group=op.groups, strides=op.stride, pads=op.padding * 2, dilations=op.dilation
            )
        shape = self._node('Shape', [x], start=2)
        batch = self._node('Shape', [x], end=1)
        flat = self._node('Reshape', [x, self._constant(torch.tensor([0, 0, -1]))])
        y = self._node('Conv', [flat, *inputs], group=op.groups)
        channels = self._constant(torch.tensor([op.out_channels]))
        return self._node('Reshape', [y, self._node('Concat', [batch, channels, shape], axis=0)])

    def _gather(self, index: Tensor, x: str) -> str:
        start = int(index[0])
        if torch.equal(index, torch.arange(start, start + index.numel())):
            bounds = [self._constant(torch.tensor([v])) for v in (start, start + index.numel(), 1)]
            return self._node('Slice', [x, *bounds])
        return self._node('Gather', [x, self._constant(index)], axis=1)

    def _index_matrix(self, op: ScatterSum, x: str) -> str:
        matrix = torch.zeros(op.channels, op.index.numel(), 1, 1)
        matrix[op.index, torch.arange(op.index.numel())] = 1
        return self._node('Conv', [x, self._constant(matrix)])

    def _module(self, module: nn.Module, x: str) -> str:
        if type(module) in _ACTIVATIONS:
            attributes = dict(alpha=1 / 6, beta=0.5) if isinstance(module, nn.Hardsigmoid) else {}
            return self._node(_ACTIVATIONS[type(module)], [x], **attributes)
        return x
