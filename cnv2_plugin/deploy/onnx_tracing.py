"""ONNX from PyTorch before 2.6, whose exporter by ``torch.export`` takes neither dynamic shapes nor own operators."""

import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

NATIVE_OPERATOR = 'cnv2_plugin::native_stages'


def trace_to_proto(
    model: nn.Module, example: Tensor, dynamic: bool, output_names: list[str], opset: int, native_domain: str
) -> 'onnx.ModelProto':
    """Export through TorchScript.

    Args:
        model: module to trace.
        example: images ``(N, C, H, W)``.
        dynamic: leave the batch size open.
        output_names: one for each output.
        opset: version of the standard operators.
        native_domain: domain of the native kernels' operator.

    Returns:
        The ``onnx.ModelProto``.
    """
    import onnx

    # A function without annotations: PyTorch 2.4 looks for classes of its own among them.
    torch.onnx.register_custom_op_symbolic(
        NATIVE_OPERATOR,
        lambda g, images, weights, plan, shape: g.op(f'{native_domain}::NativeStages', images, weights, plan),
        opset,
    )
    file: Any = io.BytesIO()
    torch.onnx.export(
        model, (example,), file, opset_version=opset, input_names=['input'], output_names=output_names,
        dynamic_axes={name: {0: 'batch'} for name in ('input', *output_names)} if dynamic else None,
    )  # fmt: skip
    return onnx.load_model_from_string(file.getvalue())
