"""Whole segmenters of MMSegmentation in one file, checked against their own ``predict``."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..deploy.verify import VerificationError, relative_difference
from ..graph.model_parts import replace_module
from ..layers.known import is_exactly
from ..models.modes import evaluating
from .adapters import adapt, adapts, refuse
from .one_file import WholeReport, write_whole

_HEADS = 'mmseg.models.decode_heads'
_PREDICTION = ('predict', 'inference', 'whole_inference', 'encode_decode', 'extract_feat', 'postprocess_result')


@dataclass(frozen=True)
class MaskReport:
    """How far the masks of a file are from those of ``predict``.

    Attributes:
        images: compared.
        pixels: compared.
        level: pixels of another class, which ``predict`` holds as likely within the tolerance.
        different: pixels of another class that are not.
        max_rel: largest difference of a class's logits over how much they vary.
        tolerance: largest one that is accepted.
    """

    images: int
    pixels: int
    level: int
    different: int
    max_rel: float
    tolerance: float

    def check(self) -> None:
        """Raise a VerificationError where more differs than rounding explains."""
        if self.different or not self.max_rel <= self.tolerance:
            raise VerificationError(
                f'{self.different} of {self.pixels} pixels of the file have another class than predict gives, and '
                f'logits differ by {self.max_rel:.3g} of what they vary; nothing was written.'
            )


class AdaptivePool(nn.Module):
    """Means over a fixed number of rows and columns, for maps of any size, where ONNX has no operator."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, *size)``."""
        rows, columns = (_shares(have, want, x) for have, want in zip(x.shape[2:], self.size))
        return rows @ x @ columns.transpose(0, 1)


def _shares(have: Any, want: int, like: Tensor) -> Tensor:
    """What each of ``have`` places counts in each of ``want`` means, ``(want, have)``."""
    number = torch.arange(want, device=like.device).unsqueeze(1)
    place = torch.arange(have, device=like.device)
    start, end = number * have // want, ((number + 1) * have + want - 1) // want
    return ((place >= start) & (place < end)).to(like) / (end - start).to(like)


@adapts(
    *(f'{_HEADS}.{name}' for name in (
        'fcn_head.FCNHead', 'lraspp_head.LRASPPHead', 'psp_head.PSPHead', 'uper_head.UPerHead',
        'segformer_head.SegformerHead', 'aspp_head.ASPPHead', 'sep_aspp_head.DepthwiseSeparableASPPHead',
    )),
    methods=('predict', 'predict_by_feat', 'forward'),
)  # fmt: skip
class Head(nn.Module):
    """A head as it is, with pools that ONNX can hold."""

    head: Any

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = deepcopy(head)
        for name, pool in head.named_modules():
            if is_exactly(pool, nn.AdaptiveAvgPool2d):
                size = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size,) * 2
                if None not in size and size != (1, 1):
                    replace_module(self.head, name, AdaptivePool(size))

    def forward(self, features: Any) -> Tensor:
        """Map the maps of backbone or neck to logits of the size of one of them; hooks of the head do not run."""
        return self.head.forward(features)


@adapts('mmseg.models.segmentors.encoder_decoder.EncoderDecoder', methods=_PREDICTION)
class WholeSegmenter(nn.Module):
    """Backbone, neck, head, and the class of every pixel."""

    names = ['mask', 'logits']

    def __init__(self, model: Any) -> None:
        super().__init__()
        mode = model.test_cfg.get('mode', 'whole')
        refuse(mode != 'whole', f'test_cfg.mode={mode!r}', "set model.test_cfg=dict(mode='whole') in the config")
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()
        self.head = adapt(model.decode_head)
        self.corners, self.threshold = model.decode_head.align_corners, model.decode_head.threshold

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(N, C, H, W)`` to the classes ``(N, H, W)`` and logits ``(N, classes, H, W)``."""
        logits = self.head(self.neck(self.backbone(images)))
        logits = F.interpolate(logits, images.shape[-2:], mode='bilinear', align_corners=self.corners)
        if logits.size(1) == 1:
            return (logits.sigmoid() > self.threshold)[:, 0].long(), logits
        return logits.argmax(1), logits


def export_segmenter(
    model: Any,
    path: Union[str, Path],
    input_size: tuple[int, int, int] = (3, 512, 512),
    batch: Union[int, Literal['dynamic']] = 'dynamic',
    fixed_size: bool = False,
    native: bool = False,
    logits: bool = False,
    tolerance: float = 1e-5,
    images: Iterable[Tensor] = (),
    metadata: Optional[Mapping[str, Any]] = None,
) -> WholeReport:
    """Write a segmenter of MMSegmentation as one file, from ``input (N, 3, H, W)``, normalised, to classes of pixels.

    ``mask (N, H, W)`` is int64, in pixels of the input. ``logits (N, classes, H, W)`` are what ``inference`` gives, one
    channel of models with a threshold.

    Args:
        model: finished, on the CPU in float32; left as it is.
        path: file to write: ONNX, or OpenVINO where it ends in ``.xml``.
        input_size: ``(C, H, W)``, multiples of the backbone's stride.
        batch: ``'dynamic'``, or a fixed number of images.
        fixed_size: take no images of another height and width.
        native: put what the native kernels compute into their operator; see :func:`cnv2_plugin.deploy.export_onnx`.
        logits: write the logits too.
        tolerance: largest difference of a class's logits, over how much they vary, that is accepted.
        images: batches of normalised images to compare with ``predict`` on, besides random ones; those that the file
            does not take are left out.
        metadata: plain values stored in the file beside those of the model's data preprocessor.

    Raises:
        UnsupportedModelError: a part of the segmenter, or the mode of its test config, is not known.
        UnfinishedPruningError: pruning is not finished.
        KernelsMissingError: ``native``, and the kernels are not built.
        ValueError: sizes do not fit.
        VerificationError: the file does not agree with ``predict``; nothing is written.
    """
    whole: WholeSegmenter = adapt(model).eval()
    names = whole.names if logits else whole.names[:1]
    head = model.decode_head
    told: dict[str, Any] = dict(kind='segmenter', num_classes=head.num_classes, align_corners=head.align_corners)
    told |= dict(threshold=head.threshold, **metadata or {})
    return write_whole(
        model, whole, path, input_size, batch, fixed_size, native, images, told,
        lambda run, batches: compare_masks(model, run, batches, tolerance), names,
    )  # fmt: skip


def compare_masks(
    model: Any, run: Callable[[Tensor], list[Tensor]], batches: Iterable[Tensor], tolerance: float = 1e-5
) -> MaskReport:
    """Compare a file, as a function from images to its outputs, with a segmenter on batches of normalised images.

    ``tolerance`` is the largest difference of a class's logits, over how much they vary, that is accepted.
    """
    images = pixels = other = different = 0
    apart = [0.0]
    for batch in batches:
        mask, *more = run(batch)
        with evaluating(model), torch.no_grad():
            samples = model.predict(batch)
        expected = torch.stack([sample.pred_sem_seg.data[0] for sample in samples]).long()
        found = torch.stack([sample.seg_logits.data for sample in samples])  # probabilities where it is one channel
        one = found.size(1) == 1
        spread = (found - found.mean((0, 2, 3), keepdim=True)).abs().max() + 0.1 * found.abs().max()
        if one:
            margin = (found[:, 0] - model.decode_head.threshold).abs()
        else:
            margin = found.amax(1) - found.gather(1, mask.clamp(0, found.size(1) - 1).unsqueeze(1))[:, 0]
        wrong = mask != expected
        images, pixels, other = images + len(batch), pixels + mask.numel(), other + int(wrong.sum())
        different += int((wrong & ~(margin <= 2 * tolerance * spread)).sum())
        for logits in more:
            apart.append(relative_difference(found, logits.sigmoid() if one else logits, torch.float32))
    return MaskReport(images, pixels, other - different, different, torch.tensor(apart).max().item(), tolerance)
