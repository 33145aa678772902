"""The runtimes of the benchmark: each turns a module into a callable that computes its output for given images."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Runner = Callable[[], object]


def eager(module: nn.Module, form: str, images: Tensor, threads: int, path: Path) -> tuple[Runner, int]:
    """PyTorch as it is; the size is that of parameters and buffers."""

    def run() -> Tensor:
        with torch.inference_mode():
            return module(images)

    tensors = [*module.parameters(), *module.buffers()]
    return run, sum(t.numel() * t.element_size() for t in tensors)


def onnxruntime(module: nn.Module, form: str, images: Tensor, threads: int, path: Path) -> tuple[Runner, int]:
    """ONNX Runtime on the processor with all its graph optimisations; the size is that of the ONNX file."""
    file = onnx_file(module, form, images, path)
    session = onnx_session(file, threads)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed), file.stat().st_size


def onnx_session(path: Path, threads: int = 1):
    """A session with every graph optimisation and ``threads`` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def onnx_file(module: nn.Module, form: str, images: Tensor, path: Path) -> Path:
    """Export once; later runtimes of the same form read the same file."""
    from .export import export_onnx

    file = path.with_name(path.name + '.onnx')
    if not file.exists():
        export_onnx(module, file, tuple(images.shape[1:]), batch=len(images), optimize=form == 'optimised')
    return file


RUNTIMES: dict[str, Callable[..., tuple[Runner, int]]] = {'eager': eager, 'onnxruntime': onnxruntime}
