"""Named results, in pixels of the original image."""

from dataclasses import dataclass
from typing import Any, Optional

import numpy
from PIL import Image

from .images import Prepared
from .metadata import Description


@dataclass(frozen=True)
class Classification:
    """Classes, the likeliest first.

    Attributes:
        names: of the classes; their numbers as text where the file has no names.
        labels: their numbers, int64 ``(K,)``.
        scores: probabilities, float32 ``(K,)``.
    """

    names: list[str]
    labels: numpy.ndarray
    scores: numpy.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dict(names=self.names, labels=self.labels.tolist(), scores=_rounded(self.scores))


@dataclass(frozen=True)
class Detection:
    """Objects, the likeliest first.

    Attributes:
        names: of their classes; numbers as text where the file has no names.
        labels: numbers of their classes, int64 ``(K,)``.
        scores: float32 ``(K,)``.
        boxes: left, top, right and bottom, float32 ``(K, 4)``.
        masks: bool ``(K, H, W)``, of models that have masks.
    """

    names: list[str]
    labels: numpy.ndarray
    scores: numpy.ndarray
    boxes: numpy.ndarray
    masks: Optional[numpy.ndarray] = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without masks."""
        plain = dict(names=self.names, labels=self.labels.tolist(), scores=_rounded(self.scores))
        return {**plain, 'boxes': [[round(side, 2) for side in box] for box in self.boxes.tolist()]}


@dataclass(frozen=True)
class Segmentation:
    """A class for every pixel.

    Attributes:
        names: of all classes; empty where the file has no names.
        mask: number of the class, int64 ``(H, W)``.
    """

    names: list[str]
    mask: numpy.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return the share of each class that is there, for JSON."""
        labels, counts = numpy.unique(self.mask, return_counts=True)
        shares = _rounded(counts / self.mask.size)
        return dict(names=_names(labels, self.names), labels=labels.tolist(), shares=shares)


def classification(logits: numpy.ndarray, about: Description, top: Optional[int]) -> Classification:
    """The classes of one image from its logits ``(classes,)``."""
    powers = numpy.exp(logits.astype(numpy.float64) - logits.max())
    labels = numpy.argsort(-logits, kind='stable')[:top]
    return Classification(
        _names(labels, about.classes), labels.astype(numpy.int64), (powers / powers.sum())[labels].astype(numpy.float32)
    )


def detection(found: dict[str, numpy.ndarray], image: Prepared, about: Description, threshold: float) -> Detection:
    """The objects of one image from its rows of ``boxes``, ``scores``, ``labels`` and perhaps ``masks``."""
    rows = numpy.flatnonzero((found['labels'] >= 0) & (found['scores'] > threshold))
    height, width = image.original
    across, down = image.scale
    boxes = found['boxes'][rows].astype(numpy.float64) / (across, down, across, down)
    if about.clips:
        boxes = numpy.clip(boxes, 0, (width, height, width, height))
    boxes = boxes.astype(numpy.float32)
    labels = found['labels'][rows].astype(numpy.int64)
    masks = None
    if 'masks' in found:
        pasted = [_paste(*pair, image.original) > about.mask_threshold for pair in zip(found['masks'][rows], boxes)]
        masks = numpy.stack(pasted) if pasted else numpy.zeros((0, height, width), bool)
    return Detection(_names(labels, about.classes), labels, found['scores'][rows], boxes, masks)


def segmentation(found: dict[str, numpy.ndarray], image: Prepared, about: Description) -> Segmentation:
    """The classes of an image's pixels from the ``mask (H, W)`` of the input, or from its ``logits`` where given."""
    height, width = image.original
    inside = (..., slice(image.inside[0]), slice(image.inside[1]))
    if 'logits' in found:
        return Segmentation(list(about.classes), _likeliest(found['logits'][inside], image.original, about))
    part = Image.fromarray(found['mask'][inside].astype(numpy.int32))
    whole = numpy.asarray(part.resize((width, height), Image.Resampling.NEAREST), numpy.int64)
    return Segmentation(list(about.classes), whole)


def _likeliest(logits: numpy.ndarray, size: tuple[int, int], about: Description) -> numpy.ndarray:
    """Classes ``(H, W)`` of the largest logits, which are interpolated one class after the other."""
    best = _interpolated(logits[0], size, about.align_corners)
    if len(logits) == 1:
        return (1 / (1 + numpy.exp(-best)) > about.threshold).astype(numpy.int64)
    labels = numpy.zeros(size, numpy.int64)
    for label, own in enumerate(logits[1:], 1):
        values = _interpolated(own, size, about.align_corners)
        labels[values > best] = label
        best = numpy.maximum(best, values)
    return labels


def _interpolated(values: numpy.ndarray, size: tuple[int, int], corners: bool) -> numpy.ndarray:
    """A map as one of another size, as PyTorch interpolates between the two nearest rows and columns."""
    for axis, want in enumerate(size):
        have, place = values.shape[axis], numpy.arange(want, dtype=numpy.float32)
        at = (
            place * ((have - 1) / max(want - 1, 1))
            if corners
            else numpy.maximum((place + 0.5) * (have / want) - 0.5, 0)
        )
        low = numpy.minimum(at.astype(numpy.int64), have - 1)
        share = (at - low).astype(numpy.float32)
        share = share[:, None] if axis == 0 else share
        high = numpy.minimum(low + 1, have - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def _paste(mask: numpy.ndarray, box: numpy.ndarray, size: tuple[int, int]) -> numpy.ndarray:
    """A mask ``(h, w)`` of the inside of a box, as one of the whole image, interpolated between its pixels."""
    left, top, right, bottom = (float(side) for side in box)
    across, down = (have / max(side, 1e-3) for have, side in zip(mask.shape[::-1], (right - left, bottom - top)))
    data = (across, 0, 1 - left * across, 0, down, 1 - top * down)
    image = Image.fromarray(numpy.pad(mask.astype(numpy.float32), 1))
    return numpy.asarray(image.transform(size[::-1], Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))


def _names(labels: numpy.ndarray, classes: Any) -> list[str]:
    return [classes[label] if label < len(classes) else str(label) for label in labels.tolist()]


def _rounded(values: numpy.ndarray) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
