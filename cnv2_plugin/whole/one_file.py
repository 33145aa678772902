"""A whole model of a toolkit in one file, compared with the model before the file gets its name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import __version__
from ..checkpoints.io import staged
from ..deploy.lower import lower
from ..deploy.runtimes import RUNTIMES
from ..deploy.runtimes.base import Loaded, check_free
from ..deploy.runtimes.onnxruntime import OPSETS, to_proto
from ..deploy.runtimes.onnxruntime import load as load_onnx
from ..deploy.verify import check_takes
from ..models.modes import in_eval
from .adapters import UnsupportedModelError

Batch = Union[int, Literal['dynamic']]


@dataclass(frozen=True)
class WholeReport:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        outputs: their names.
        count: boxes of an image, K, of detectors.
        verification: the file in its runtime against ``predict``.
    """

    path: Path
    size: int
    outputs: tuple[str, ...]
    count: Optional[int]
    verification: Any


def write_whole(
    model: Any,
    whole: Any,
    path: Union[str, Path],
    input_size: tuple[int, int, int],
    batch: Batch,
    fixed_size: bool,
    native: bool,
    images: Iterable[Tensor],
    metadata: Mapping[str, Any],
    compare: Callable[[Loaded, list[Tensor]], Any],
    names: Sequence[str],
    defaults: Optional[Mapping[str, Tensor]] = None,
) -> WholeReport:
    """Write a model as one ``.onnx`` or ``.xml`` file, compared before it gets its name.

    ``whole`` restates the model as a module with a ``backbone``, from images to outputs called ``whole.names``.
    ``compare`` compares what runs a file with the model, on batches of images, and gives a report with a ``check()``.
    Where ``names`` of outputs are not all, all are compared once before the others are dropped. ``defaults`` are those
    of further inputs, which need not be given to the file. See ``export_detector`` for the others.
    """
    if batch != 'dynamic' and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch is {batch!r}; it takes 'dynamic' or a whole number of at least 1.")
    path = Path(path)
    kind = RUNTIMES['openvino' if path.suffix == '.xml' else 'onnxruntime']
    if native and kind.name == 'openvino':
        raise ValueError(f'{path} holds standard operators only; native ones are for .onnx files.')
    paths = tuple(path.with_suffix(suffix) for suffix in kind.suffixes) if len(kind.suffixes) > 1 else (path,)
    check_free(paths, kind)
    runtime = kind.module()
    stride = _stride(whole, input_size)
    check_takes(whole, input_size, type(model).__name__)
    lowered = in_eval(lower(whole, input_size, 'native' if native else kind.table))
    dims = {0: 'batch'} if batch == 'dynamic' else {}
    if not fixed_size:
        dims |= {2: 'height', 3: 'width'}
    count = 2 if batch == 'dynamic' else batch
    example = torch.randn(count, *input_size, generator=torch.Generator().manual_seed(0))
    batches = [example, *_others(example, stride, dims), *_fitting(images, example, stride, dims)]
    try:
        proto = to_proto(lowered, example, dims, whole.names, trace=True, opset=OPSETS[-1], defaults=defaults)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise UnsupportedModelError(
            f'{type(model).__name__} has an operator that PyTorch cannot write as ONNX; export its backbone and '
            f'neck (cnv2 deploy --features). ({str(error).splitlines()[0]})'
        ) from error
    about = dict(version=__version__, size=list(input_size), stride=stride)
    told = {**about, **_preprocessing(model), **metadata}
    with staged(*paths) as temporaries:
        if [*names] != [*whole.names]:
            compare(load_onnx(proto.SerializeToString()), batches).check()
            for output in [output for output in proto.graph.output if output.name not in names]:
                proto.graph.output.remove(output)
        runtime.save(proto, temporaries[0], told)
        report = compare(runtime.load(temporaries[0]), batches)
        report.check()
        size = sum(temporary.stat().st_size for temporary in temporaries)
    return WholeReport(path, size, tuple(names), getattr(whole, 'count', None), report)


def _stride(whole: Any, input_size: tuple[int, int, int]) -> int:
    """The largest stride of the backbone, by which sizes have to be divisible."""
    if len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(f'input_size is {tuple(input_size)}; it takes three positive numbers (C, H, W).')
    with torch.no_grad():
        stride = 256 // min(maps.size(2) for maps in whole.backbone(torch.zeros(1, input_size[0], 256, 256)))
    if any(size % stride for size in input_size[1:]):
        raise ValueError(f'input_size is {tuple(input_size)}; height and width take multiples of {stride}.')
    return stride


def _fitting(images: Iterable[Tensor], example: Tensor, stride: int, dims: dict[int, str]) -> Iterator[Tensor]:
    """Images as the file takes them, without those that it does not take."""
    for batch in images:
        batch = F.pad(batch, (0, -batch.size(3) % stride, 0, -batch.size(2) % stride))
        if all(axis in dims or batch.size(axis) == example.size(axis) for axis in range(4)):
            yield batch


def _others(example: Tensor, stride: int, dims: dict[int, str]) -> list[Tensor]:
    """Random images, of another number and size than the example where the file takes them."""
    more = (1, 0, stride, 2 * stride)
    sizes = [size + more[axis] * (axis in dims) for axis, size in enumerate(example.shape)]
    return [torch.randn(sizes, generator=torch.Generator().manual_seed(1))] if dims else []


def _preprocessing(model: Any) -> dict[str, Any]:
    """What a user of the file must know about its images."""
    preprocessor: Optional[Any] = model.data_preprocessor
    found: dict[str, Any] = {}
    if getattr(preprocessor, '_enable_normalize', False):
        found = {name: getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std')}
    swaps = any(getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion'))
    return {**found, 'channel_order': 'RGB' if swaps else 'BGR'}
