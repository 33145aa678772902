"""A whole detector in one ONNX file, checked against its own ``predict`` before the file gets its name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import __version__
from ...checkpoints import atomic_path
from ...checkpoints.io import check_target
from ...models.modes import in_eval
from ..lower import lower
from ..runtimes import onnxruntime
from .boxes import write_as_standard_operators
from .compare import BoxReport, compare
from .registry import UnsupportedDetectorError, adapt
from .whole import WholeDetector


@dataclass(frozen=True)
class DetectorReport:
    """What was written.

    Attributes:
        path: the ONNX file.
        size: its bytes.
        outputs: their names.
        count: boxes of an image, K.
        verification: the file in ONNX Runtime against ``predict``.
    """

    path: Path
    size: int
    outputs: tuple[str, ...]
    count: int
    verification: BoxReport


def export_detector(
    model: nn.Module,
    path: Union[str, Path],
    input_size: tuple[int, int, int] = (3, 320, 320),
    batch: Union[int, Literal['dynamic']] = 'dynamic',
    fixed_size: bool = False,
    native: bool = False,
    tolerance: float = 1e-5,
    images: Iterable[Tensor] = (),
    metadata: Optional[Mapping[str, Any]] = None,
) -> DetectorReport:
    """Write a detector of MMDetection as one ONNX file, from ``input (N, 3, H, W)``, normalised, to what it finds.

    ``boxes (N, K, 4)`` are in pixels of the input, ``scores (N, K)`` fall, ``labels (N, K)`` are int64, ``masks
    (N, K, h, w)`` of models that have them are to be pasted into the boxes; an empty row has score 0 and label -1. K is
    ``max_per_img`` of the test config, or 300. Post-processing is that of the test config.

    Args:
        model: finished, on the CPU in float32; left as it is.
        path: file to write.
        input_size: ``(C, H, W)``, multiples of the backbone's stride.
        batch: ``'dynamic'``, or a fixed number of images.
        fixed_size: take no images of another height and width.
        native: put what the native kernels compute into their operator; see :func:`cnv2_plugin.deploy.export_onnx`.
        tolerance: largest difference of scores that is accepted; coordinates may differ by a thousand times as many
            pixels.
        images: batches of normalised images to compare with ``predict`` on, besides random ones; those that the file
            does not take are left out.
        metadata: plain values stored in the file beside those of the model's data preprocessor.

    Raises:
        UnsupportedDetectorError: a part of the detector, or a setting of its test config, is not known.
        UnfinishedPruningError: pruning is not finished.
        KernelsMissingError: ``native``, and the kernels are not built.
        ValueError: sizes do not fit.
        VerificationError: the file does not agree with ``predict``; nothing is written.
    """
    if batch != 'dynamic' and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch is {batch!r}; it takes 'dynamic' or a whole number of at least 1.")
    check_target(path)
    whole: WholeDetector = adapt(model).eval()
    stride = _stride(whole, input_size)
    lowered = in_eval(lower(whole, input_size, 'native' if native else 'onnxruntime'))
    count = 2 if batch == 'dynamic' else batch
    dims = {0: 'batch'} if batch == 'dynamic' else {}
    if not fixed_size:
        dims |= {2: 'height', 3: 'width'}
    with atomic_path(path) as temporary:
        example = torch.randn(count, *input_size, generator=torch.Generator().manual_seed(0))
        proto = _proto(lowered, example, dims, whole.names, type(model))
        onnxruntime.save(proto, temporary, {**_metadata(model, whole, input_size, stride), **(metadata or {})})
        batches = [example, *_others(example, stride, dims), *_fitting(images, example, stride, dims)]
        report = compare(model, onnxruntime.load(temporary), batches, 1e3 * tolerance, tolerance)
        report.check()
        size = temporary.stat().st_size
    return DetectorReport(Path(path), size, tuple(whole.names), whole.count, report)


def _proto(lowered: nn.Module, example: Tensor, dims: dict[int, str], names: list[str], kind: type) -> Any:
    write_as_standard_operators(onnxruntime.OPSETS[-1])
    try:
        return onnxruntime.to_proto(lowered, example, dims, names, trace=True)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise UnsupportedDetectorError(
            f'{kind.__name__} has an operator that PyTorch cannot write as ONNX; export its backbone and '
            f'neck (cnv2 deploy --features). ({str(error).splitlines()[0]})'
        ) from error


def _stride(whole: WholeDetector, input_size: tuple[int, int, int]) -> int:
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


def _metadata(model: Any, whole: WholeDetector, input_size: tuple[int, int, int], stride: int) -> dict[str, Any]:
    """What a user of the file must know about its input and its boxes."""
    preprocessor = model.data_preprocessor
    found = dict(kind='detector', version=__version__, size=list(input_size), stride=stride, clips=whole.clips)
    if getattr(preprocessor, '_enable_normalize', False):
        found |= {name: getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std')}
    if 'masks' in whole.names:
        found['mask_thr_binary'] = model.roi_head.test_cfg.mask_thr_binary
    return {**found, 'channel_order': 'RGB' if getattr(preprocessor, '_channel_conversion', False) else 'BGR'}
