"""Boxes of a file against those of the detector's own ``predict``."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from ...deploy.verify import VerificationError
from ...models.modes import evaluating

SHARE = 0.01
"""Of twenty boxes or more, so many (but always a pair) may be decided otherwise, where the last digit turns a score or
an overlap at its threshold."""


@dataclass(frozen=True)
class BoxReport:
    """How far the boxes of a file are from those of ``predict``.

    Attributes:
        images: compared.
        boxes: compared, all of ``predict``'s that the file has room for.
        unmatched: boxes of either side without a partner of the same class within the tolerances, but for ties with the
            last one where there are more than the file has room for.
        max_box: largest difference of a coordinate between partners, in pixels.
        max_score: largest difference of their scores.
        max_mask: largest share of an image's pixels that differ in the masks of partners.
    """

    images: int
    boxes: int
    unmatched: int
    max_box: float
    max_score: float
    max_mask: float

    def check(self) -> None:
        """Raise a VerificationError where more boxes differ than numerics explain."""
        allowed = max(2, SHARE * self.boxes) if self.boxes >= 20 else 0
        if self.unmatched > allowed or self.max_mask > SHARE:
            raise VerificationError(
                f'{self.unmatched} of {self.boxes} boxes of the ONNX file differ from those of predict (masks by up to '
                f'{self.max_mask:.1%} of the pixels); nothing was written.'
            )


def compare(
    model: Any,
    run: Callable[..., list[Tensor]],
    batches: Iterable[Tensor],
    box_tolerance: float = 1e-2,
    score_tolerance: float = 1e-5,
    padded: bool = False,
) -> BoxReport:
    """Compare a file with a detector.

    Args:
        model: of MMDetection.
        run: the file, from images to its outputs.
        batches: normalised images ``(N, C, H, W)``.
        box_tolerance: in pixels.
        score_tolerance: absolute.
        padded: compare each batch once more as padded images, whose sizes the file is told.
    """
    images = boxes = unmatched = 0
    worst = [0.0, 0.0, 0.0]
    for batch, sizes in _cases(batches, padded):
        outputs = run(batch) if sizes is None else run(batch, sizes=sizes)
        for i, sample in enumerate(predict(model, batch, sizes)):
            images += 1
            expected = sample.pred_instances[: outputs[1].size(1)]
            actual = [output[i][outputs[2][i] >= 0] for output in outputs]
            partners = _partners(expected, actual, box_tolerance, score_tolerance)
            boxes += len(expected)
            full = len(expected) == outputs[1].size(1)  # those that tie with the last one are as good as it
            floor = expected.scores.min() + score_tolerance if full else 0.0
            for scores, taken in zip((expected.scores, actual[1]), zip(*partners) if partners else ((), ())):
                unmatched += sum(i not in taken and bool(score > floor) for i, score in enumerate(scores))
            for a, b in partners:
                worst[0] = max(worst[0], (expected.bboxes[a] - actual[0][b]).abs().max().item())
                worst[1] = max(worst[1], (expected.scores[a] - actual[1][b]).abs().item())
                if len(actual) > 3:
                    threshold = model.roi_head.test_cfg.mask_thr_binary
                    pasted = paste(actual[3][b : b + 1], actual[0][b : b + 1], sample.img_shape, threshold)
                    worst[2] = max(worst[2], (pasted[0] != expected.masks[a]).float().mean().item())
    return BoxReport(images, boxes, unmatched, *worst)


def predict(model: Any, images: Tensor, sizes: Optional[Tensor] = None) -> list[Any]:
    """What the detector predicts for normalised images of those sizes ``(N, 2)``, in pixels of them."""
    from mmdet.structures import DetDataSample

    whole = tuple(images.shape[-2:])
    samples = []
    for size in [whole] * len(images) if sizes is None else map(tuple, sizes.tolist()):
        shapes = dict(img_shape=size, ori_shape=size, pad_shape=whole, batch_input_shape=whole)
        samples.append(DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), border=[0.0] * 4)))
    head = getattr(model, 'bbox_head', None)
    if head is not None and not hasattr(head, 'loss_cls'):
        head.loss_cls = None  # predict of MMDetection 3.3 asks for it, and SSDHead has none
    with evaluating(model), torch.no_grad():
        return model.predict(images, samples, rescale=False)


def _cases(batches: Iterable[Tensor], padded: bool) -> Iterator[tuple[Tensor, Optional[Tensor]]]:
    """Each batch, and once more with sizes ``(N, 2)`` that differ, each a little smaller than the input."""
    for batch in batches:
        yield batch, None
        if padded:
            height, width = batch.shape[-2:]
            yield batch, torch.tensor([[height - 3 - i % 5, width - 7 - i % 3] for i in range(len(batch))]).clamp(min=1)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks ``(K, h, w)`` of boxes as bools ``(K, H, W)`` of an image of that height and width."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    pasted = torch.zeros(len(masks), *size, dtype=torch.bool)
    for i in range(len(masks)):
        found, (rows, columns) = _do_paste_mask(masks[i : i + 1, None], boxes[i : i + 1], *size)
        pasted[i, rows, columns] = found[0] >= threshold
    return pasted


def _partners(
    expected: Any, actual: list[Tensor], box_tolerance: float, score_tolerance: float
) -> list[tuple[int, int]]:
    """Pairs of boxes that agree, none twice; the closest one is taken."""
    boxes, scores, labels = actual[:3]
    far = (expected.bboxes[:, None] - boxes).abs().amax(-1) / box_tolerance
    far = torch.maximum(far, (expected.scores[:, None] - scores).abs() / score_tolerance)
    far[expected.labels[:, None] != labels] = torch.inf
    pairs = []
    for a in range(len(far)):
        b = int(far[a].argmin()) if far.size(1) else 0
        if far.size(1) and far[a, b] <= 1:
            pairs.append((a, b))
            far[:, b] = torch.inf
    return pairs
