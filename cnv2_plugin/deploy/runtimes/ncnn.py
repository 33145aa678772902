"""ncnn, through pnnx."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from .base import Loaded


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: object = None) -> None:
    """Write ``.param`` and ``.bin`` with float32 weights; they have no place for ``metadata``."""
    import pnnx

    with TemporaryDirectory(dir=path.parent) as folder:
        traced = Path(folder) / 'model.pt'
        with torch.no_grad(), redirect_stdout(None), _quiet():
            pnnx.export(lowered, str(traced), (example,), fp16=False)
        param = traced.with_name('model.ncnn.param')
        if not param.exists():
            raise RuntimeError('pnnx could not convert the model to ncnn.')
        unknown = {line.split()[0] for line in param.read_text().splitlines()[2:] if '.' in line.split()[0]}
        if unknown:
            raise RuntimeError(
                f'ncnn has no layer for {", ".join(sorted(unknown))}; choose other forms for this model.'
            )
        param.replace(path)
        traced.with_name('model.ncnn.bin').replace(path.with_suffix('.bin'))


def load(path: Path) -> Loaded:
    """Run on the processor in float32, image by image, with as many threads as PyTorch has."""
    import ncnn
    import numpy

    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = net.opt.use_winograd_convolution = False
    net.opt.num_threads = torch.get_num_threads()
    net.load_param(str(path))
    net.load_model(str(path.with_suffix('.bin')))
    outputs = [name for name in net.output_names()]

    def run(x: Tensor) -> list[Tensor]:
        rows = []
        for image in x:
            with net.create_extractor() as extractor:
                extractor.input('in0', ncnn.Mat(image.contiguous().numpy()).clone())
                rows.append([torch.from_numpy(numpy.array(extractor.extract(name)[1])) for name in outputs])
        return [torch.stack(maps) for maps in zip(*rows)]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what the pnnx program prints, to both of its outputs, and the tracer's warnings nowhere."""
    saved, nowhere = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}, os.open(os.devnull, os.O_WRONLY)
    for descriptor in saved:
        os.dup2(nowhere, descriptor)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
