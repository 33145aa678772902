"""A detector as one module, from normalised images to boxes, and as one file, checked against its own ``predict``."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn

from ...deploy.runtimes.onnxruntime import OPSETS
from ..adapters import adapt, adapts
from ..one_file import WholeReport, write_whole
from . import dense, two_stage  # noqa: F401 -- they register what they adapt
from .boxes import DECODING, Frame, Head, best, centred, clip, rows, write_as_standard_operators
from .compare import compare

_DETECTORS = 'mmdet.models.detectors'
_PREDICTION = ('predict', 'extract_feat')
_STEPS = (
    'predict', 'extract_feat', 'forward_transformer', 'pre_transformer', 'forward_encoder', 'pre_decoder',
    'forward_decoder',
)  # fmt: skip


class WholeDetector(nn.Module):
    """Backbone, neck, head and post-processing of a detector.

    Args:
        model: the detector, in eval mode.
    """

    names = ['boxes', 'scores', 'labels']
    """Of the outputs."""
    count: int
    """Boxes of an image."""
    clips: bool
    """Whether boxes end at the border of the image."""
    minds_padding: bool
    """Whether padding changes what is found."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        raise NotImplementedError

    def forward(self, images: Tensor, sizes: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        """Map ``(N, C, H, W)`` to boxes ``(N, K, 4)`` in pixels, scores and labels ``(N, K)``, and the masks.

        Args:
            images: normalised.
            sizes: height and width ``(N, 2)`` of those that are padded below and to the right; 0 for the others.
        """
        whole = images.shape[-2:]
        sizes = images.new_zeros(1, 2, dtype=torch.int64) if sizes is None else sizes
        sizes = sizes.expand(images.size(0), 2)
        sides = [torch.where(side > 0, side, most) for side, most in zip(sizes.unbind(1), whole)]
        height, width = (side.to(images).view(-1, 1, 1) for side in sides)
        return self.detect(self.neck(self.backbone(images)), Frame(height, width, (whole[0], whole[1])))


@adapts(f'{_DETECTORS}.single_stage.SingleStageDetector', methods=_PREDICTION)
class SingleStage(WholeDetector):
    """Boxes straight from the maps."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = adapt(model.bbox_head)
        self.count, self.clips = self.head.count, self.head.clips
        self.minds_padding = self.clips

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        return self.head(features, size)


@adapts(f'{_DETECTORS}.two_stage.TwoStageDetector', methods=_PREDICTION)
class TwoStage(WholeDetector):
    """Proposals, then boxes, then masks where the model has them."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.proposals, self.head = adapt(model.rpn_head), adapt(model.roi_head)
        self.count, self.clips = self.head.count, self.head.heads[-1].decode.clips
        self.minds_padding = self.proposals.clips or any(head.decode.clips for head in self.head.heads)
        if self.head.with_mask:
            self.names = [*self.names, 'masks']

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores, labels and masks of images of that height and width."""
        boxes, _, labels = self.proposals(features, size)
        return self.head(features, boxes, labels >= 0, size)


@adapts('mmdet.models.dense_heads.detr_head.DETRHead', methods=(*DECODING, 'forward'))
class QueryHead(Head):
    """A box for every query; nothing is suppressed."""

    def forward(self, hidden: Tensor, count: int, size: Frame) -> tuple[Tensor, ...]:
        """Map the decoder's states ``(1, N, Q, C)`` to so many boxes, scores and labels."""
        logits, boxes = (outputs[-1] for outputs in self.head(hidden))
        if self.head.loss_cls.use_sigmoid:
            classes = logits.size(-1)
            scores, order = logits.sigmoid().flatten(1).topk(count)
            boxes, labels = rows(boxes, order // classes), order % classes
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        boxes = centred(boxes[..., :2], boxes[..., 2:]) * size.sides()
        return best(clip(boxes, size), scores, labels, count)


@adapts(f'{_DETECTORS}.detr.DETR', methods=_STEPS)
class QueryDetector(WholeDetector):
    """DETR, whose attention leaves padding out."""

    clips = minds_padding = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.places, self.encoder, self.decoder = model.positional_encoding, model.encoder, model.decoder
        self.queries, self.head = model.query_embedding, adapt(model.bbox_head)
        self.count = (model.bbox_head.test_cfg or {}).get('max_per_img', model.num_queries)

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        maps = features[-1]
        shape = (*maps.shape[:2], -1)
        down, across = (
            torch.arange(count, device=maps.device) * most >= side[:, 0] * count
            for count, most, side in zip(maps.shape[2:], size.input, size[:2])
        )
        padding = down.unsqueeze(2) | across.unsqueeze(1)
        memory = maps.reshape(shape).transpose(1, 2)
        places = self.places(padding).reshape(shape).transpose(1, 2)
        memory = self.encoder(query=memory, query_pos=places, key_padding_mask=padding.flatten(1))
        queries = self.queries.weight.unsqueeze(0).repeat(maps.size(0), 1, 1)
        hidden = self.decoder(
            query=torch.zeros_like(queries), key=memory, value=memory, query_pos=queries, key_pos=places,
            key_padding_mask=padding.flatten(1),
        )  # fmt: skip
        return self.head(hidden[-1].unsqueeze(0), self.count, size)


def num_classes_of(model: Any) -> Optional[int]:
    """How many classes a detector knows; None where its boxes have none."""
    head = getattr(getattr(model, 'roi_head', model), 'bbox_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return None if 'RPNHead' in [kind.__name__ for kind in type(head).__mro__] else getattr(head, 'num_classes', None)


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
) -> WholeReport:
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
    return write_whole(
        model, whole, path, input_size, batch, fixed_size, native, images, told,
        lambda run, batches: compare(model, run, batches, 1e3 * tolerance, tolerance, padded),
        whole.names, dict(sizes=torch.zeros(1, 2, dtype=torch.int64)),
    )  # fmt: skip
