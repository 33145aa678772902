"""OpenVINO IR, read from the lowered ONNX graph."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import Tensor, nn

from .base import Loaded, as_text

if TYPE_CHECKING:
    from onnx import ModelProto
    from openvino import Core


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write ``.xml`` and ``.bin`` in float32; ``metadata`` is in the section ``cnv2_plugin`` of ``rt_info``."""
    from .onnxruntime import to_proto

    save(to_proto(lowered, example), path, metadata)


def save(proto: 'ModelProto', path: Path, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write an ONNX model as ``.xml`` and ``.bin``, with plain values about it."""
    import openvino

    model = _core().read_model(proto.SerializeToString())
    for key, value in (metadata or {}).items():
        model.set_rt_info(as_text(value), ['cnv2_plugin', key])
    openvino.save_model(model, path, compress_to_fp16=False)


def load(model: Union[Path, bytes], threads: int = 0) -> Loaded:
    """Run on the CPU in float32 with so many threads; 0 for as many as OpenVINO takes."""
    core = _core()
    settings = {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
    request = core.compile_model(core.read_model(model), 'CPU', settings).create_infer_request()
    return lambda x: [torch.from_numpy(output.copy()) for output in request.infer([x.numpy()]).values()]


@lru_cache(maxsize=1)
def _core() -> 'Core':
    """The core, kept until the process ends.

    Its plugin for the processor takes over the alternate signal stack of the thread that makes it, and gives back one
    that is freed where another plugin was made meanwhile (2026.4): the next signal with a handler in Python then ends
    the process without a word.
    """
    from openvino import Core

    return Core()
