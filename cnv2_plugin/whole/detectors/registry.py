"""What adapters of heads share: settings of a test config, and coders of boxes."""

from collections.abc import Mapping
from functools import partial
from math import log
from typing import Any, Optional

import torch
from torch import Tensor

from ..adapters import adapt, full_name, refuse
from ..adapters import adapts as _adapts
from .boxes import Frame, centred, clip

__all__ = ['DECODING', 'DEFAULT_COUNT', 'adapt', 'adapts', 'full_name', 'iou_threshold', 'positive', 'refuse']

DECODING = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
"""Methods from raw outputs to boxes, which adapters restate."""

DEFAULT_COUNT = 300
"""Boxes of an image where the config does not say how many."""

adapts = partial(_adapts, methods=DECODING)
"""Register an adapter; see :func:`cnv2_plugin.whole.adapters.adapts`."""


def positive(cfg: Mapping[str, Any], name: str, default: Optional[int] = None) -> int:
    """A number of boxes in a test config."""
    value = cfg.get(name, default)
    refuse(value is None or value < 1, f'{name}={value} of the test config', f'give {name} a number of at least 1')
    return value


def iou_threshold(cfg: Mapping[str, Any]) -> tuple[float, bool]:
    """Threshold of the suppression in a test config, and whether classes suppress each other."""
    nms: Any = cfg.get('nms')
    known = (
        nms and nms.get('type', 'nms') == 'nms' and {*nms} <= {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    )
    refuse(not known, f'nms={nms and dict(nms)} of the test config', "take dict(type='nms', iou_threshold=...)")
    return float(nms['iou_threshold']), bool(nms.get('class_agnostic', False))


@adapts('mmdet.models.task_modules.coders.delta_xywh_bbox_coder.DeltaXYWHBBoxCoder', methods=('decode',))
class DeltaBoxes:
    """Boxes from shifts and scales of other boxes."""

    def __init__(self, coder: Any) -> None:
        refuse(coder.add_ctr_clamp, 'add_ctr_clamp=True of the box coder', 'leave it out')
        self.means, self.stds, self.clips = tuple(coder.means), tuple(coder.stds), coder.clip_border

    def __call__(self, priors: Tensor, deltas: Tensor, size: Optional[Frame]) -> Tensor:
        """Decode ``(N, P, 4)``, within an image of that height and width where one is given."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        sizes, limit = priors[..., 2:] - priors[..., :2], abs(log(16 / 1000))
        centres = (priors[..., :2] + priors[..., 2:]) * 0.5 + sizes * deltas[..., :2]
        boxes = centred(centres, sizes * deltas[..., 2:].clamp(-limit, limit).exp())
        return clip(boxes, size) if self.clips and size else boxes


@adapts('mmdet.models.task_modules.coders.distance_point_bbox_coder.DistancePointBBoxCoder', methods=('decode',))
class DistanceBoxes:
    """Boxes from distances of their four sides to a point."""

    def __init__(self, coder: Any) -> None:
        self.clips = coder.clip_border

    def __call__(self, points: Tensor, distances: Tensor, size: Optional[Frame]) -> Tensor:
        """Decode ``(N, P, 4)``, within an image of that height and width where one is given."""
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
        return clip(boxes, size) if self.clips and size else boxes
