"""A whole detector in one file, checked against its own ``predict`` before the file gets its name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor
from torch.nn import ModuleList

from ...deploy.runtimes.onnxruntime import OPSETS
from ..adapters import adapt
from ..one_file import write_whole
from . import transformer  # noqa: F401 -- registers what it adapts
from .boxes import write_as_standard_operators
from .compare import BoxReport, compare
from .whole import WholeDetector


def num_classes_of(model: Any) -> Optional[int]:
    """How many classes a detector knows; None where its boxes have none."""
    head = getattr(getattr(model, 'roi_head', model), 'bbox_head', None)
    head = head[-1] if isinstance(head, ModuleList) else head
    return None if 'RPNHead' in [kind.__name__ for kind in type(head).__mro__] else getattr(head, 'num_classes', None)


@dataclass(frozen=True)
class DetectorReport:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        outputs: their names.
        count: boxes of an image, K.
        verification: the file in its runtime against ``predict``.
    """

    path: Path
    size: int
    outputs: tuple[str, ...]
    count: int
    verification: BoxReport


def export_detector(
    model: Any,
    path: Union[str, Path],
    input_size: tuple[int, int, int] = (3, 320, 320),
    batch: Union[int, Literal['dynamic']] = 'dynamic',
    fixed_size: bool = False,
    native: bool = False,
    tolerance: float = 1e-5,
    images: Iterable[Tensor] = (),
    metadata: Optional[Mapping[str, Any]] = None,
) -> DetectorReport:
    """Write a detector of MMDetection as one file, from ``input (N, 3, H, W)``, normalised, to what it finds.

    ``boxes (N, K, 4)`` are in pixels of the input, ``scores (N, K)`` fall, ``labels (N, K)`` are int64, ``masks
    (N, K, h, w)`` of models that have them are to be pasted into the boxes; an empty row has score 0 and label -1. K is
    ``max_per_img`` of the test config, or 300. Post-processing is that of the test config. Where padding matters to
    it, an ONNX file has a second input that need not be given: ``sizes (N, 2)``, int64, height and width of each image,
    which is padded below and to the right.

    Args:
        model: finished, on the CPU in float32; left as it is.
        path: file to write: ONNX, or OpenVINO where it ends in ``.xml``.
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
    whole: WholeDetector = adapt(model).eval()
    write_as_standard_operators(OPSETS[-1])
    told: dict[str, Any] = dict(kind='detector', clips=whole.clips, num_classes=num_classes_of(model))
    if 'masks' in whole.names:
        told['mask_thr_binary'] = model.roi_head.test_cfg.mask_thr_binary
    told |= metadata or {}
    padded = whole.minds_padding and Path(path).suffix != '.xml'
    size, report = write_whole(
        model, whole, path, input_size, batch, fixed_size, native, images, told,
        lambda run, batches: compare(model, run, batches, 1e3 * tolerance, tolerance, padded),
        whole.names, dict(sizes=torch.zeros(1, 2, dtype=torch.int64)),
    )  # fmt: skip
    return DetectorReport(Path(path), size, tuple(whole.names), whole.count, report)
