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


def segmentation(mask: numpy.ndarray, image: Prepared, about: Description) -> Segmentation:
    """The classes of an image's pixels from those ``(H, W)`` of the input."""
    height, width = image.original
    part = Image.fromarray(mask[: image.inside[0], : image.inside[1]].astype(numpy.int32))
    whole = numpy.asarray(part.resize((width, height), Image.Resampling.NEAREST), numpy.int64)
    return Segmentation(list(about.classes), whole)


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
