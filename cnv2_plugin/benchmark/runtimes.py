"""The runtimes of the benchmark: each turns a module into a callable that computes its output for given images."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor, nn

from ..deploy import export_onnx
from ..deploy.runtimes import runtime_named
from ..deploy.timing import Runner
from ..kernels import available, onnxruntime_library


@dataclass(frozen=True)
class Prepared:
    """Something to time."""

    run: Runner
    size: int  # bytes of the exported file, or of parameters and buffers where there is none
    file: Optional[Path] = None


def eager(module: nn.Module, images: Tensor, threads: int, folder: Path, optimize: bool) -> Prepared:
    """PyTorch as it is."""

    def run() -> Tensor:
        with torch.inference_mode():
            return module(images)

    return Prepared(run, _bytes(module))


def compiled(module: nn.Module, images: Tensor, threads: int, folder: Path, optimize: bool) -> Prepared:
    """``torch.compile`` with its default backend; needs a C++ compiler."""
    import torch._dynamo.config as limits

    limits.cache_size_limit = max(limits.cache_size_limit, 256)  # all networks share one forward; the ninth ran eagerly
    program = torch.compile(module)

    def run() -> Tensor:
        with torch.no_grad():
            return program(images)

    run()
    return Prepared(run, _bytes(module))


def exported(name: str, tolerance: float = 1e-5) -> Callable[..., Prepared]:
    """A runtime of :mod:`cnv2_plugin.deploy.runtimes` with its file; OpenVINO reads that of ONNX Runtime.

    ONNX files are found again where the structure, the weights and the images are the same, and agree with PyTorch to
    the tolerance.
    """

    def prepare(module: nn.Module, images: Tensor, threads: int, folder: Path, optimize: bool) -> Prepared:
        kind, digest = runtime_named(name), _digest(module, images, optimize)
        runtime = kind.module()
        if name in ('onnxruntime', 'openvino'):
            files = [folder / f'{digest}.onnx']
            if not files[0].exists():
                size = tuple(images.shape[1:])
                export_onnx(module, files[0], size, len(images), optimize=optimize, tolerance=tolerance)
            load = runtime.load(files[0], threads)
        else:
            files = [folder / f'{digest}{suffix}' for suffix in kind.suffixes]
            runtime.write(module, files[0], images)
            load = runtime.load(files[0])
        return Prepared(lambda: load(images), sum(file.stat().st_size for file in files), files[0])

    return prepare


def _digest(module: nn.Module, images: Tensor, optimize: bool) -> str:
    digest = hashlib.sha256(f'{module} {tuple(images.shape)} {optimize}'.encode())
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:24]


def peak_memory(file: Path, shape: tuple[int, ...]) -> int:
    """Bytes by which loading and running an ONNX file in ONNX Runtime raises the peak memory of a fresh process."""
    library = onnxruntime_library() if available() else ''
    result = subprocess.run(
        [sys.executable, '-c', _MEMORY, str(file), library, *map(str, shape)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


_MEMORY = """
import resource, sys
from pathlib import Path
import numpy, onnxruntime

def peak():
    status = Path('/proc/self/status')  # of this process alone; what getrusage gives may be inherited
    if status.exists():
        return 1024 * int(status.read_text().split('VmHWM:')[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

images = numpy.zeros(list(map(int, sys.argv[3:])), numpy.float32)
options = onnxruntime.SessionOptions()
if sys.argv[2]:
    options.register_custom_ops_library(sys.argv[2])
options.intra_op_num_threads = options.inter_op_num_threads = 1
before = peak()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])
for _ in range(3):
    session.run(None, {session.get_inputs()[0].name: images})
print(peak() - before)
"""


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


RUNTIMES: dict[str, Callable[..., Prepared]] = {
    'eager': eager,
    'compile': compiled,
    **{name: exported(name) for name in ('onnxruntime', 'openvino', 'torch_export', 'executorch', 'ncnn')},
}
