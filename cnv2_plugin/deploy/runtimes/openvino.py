"""OpenVINO IR, read from the optimised ONNX graph."""

from pathlib import Path

from torch import Tensor, nn

from ...lowering.openvino_core import openvino_core
from .base import Loaded


def write(lowered: nn.Module, path: Path, example: Tensor) -> None:
    """Write ``.xml`` and ``.bin`` in float32."""
    import openvino

    from ..export import export_onnx

    onnx = path.with_suffix('.onnx')
    batch, channels, height, width = example.shape
    export_onnx(lowered, onnx, (channels, height, width), batch=batch)
    openvino.save_model(openvino_core().read_model(onnx), path, compress_to_fp16=False)


def load(path: Path) -> Loaded:
    """Run on the processor in float32."""
    import torch

    settings = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino_core().compile_model(path, 'CPU', settings)
    return lambda x: [torch.from_numpy(output.copy()) for output in compiled([x.numpy()]).values()]
