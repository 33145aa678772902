"""Which class of which toolkit is restated by which adapter, and what no adapter knows."""

from collections.abc import Callable, Mapping
from math import log
from typing import Any, Optional

import torch
from torch import Tensor

from .boxes import Size, centred, clip

DECODING = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
"""Methods from raw outputs to boxes, which adapters restate."""

DEFAULT_COUNT = 300
"""Boxes of an image where the config does not say how many."""

_ADAPTERS: dict[str, tuple[type, tuple[str, ...]]] = {}


class UnsupportedDetectorError(ValueError):
    """A detector has a part that no adapter restates; the message names it."""


def adapts(*names: str, methods: tuple[str, ...] = DECODING) -> Callable[[type], type]:
    """Register an adapter for the classes of those full names; it stands for what these methods of them compute."""

    def register(adapter: type) -> type:
        _ADAPTERS.update({name: (adapter, methods) for name in names})
        return adapter

    return register


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f'{kind.__module__}.{kind.__qualname__}'


def adapt(part: Any, *args: Any) -> Any:
    """Build the adapter of a part from it.

    Raises:
        UnsupportedDetectorError: there is none for its class, or it overrides what the adapter restates.
    """
    name = full_name(type(part))
    overridden = set(vars(part))
    for kind in type(part).__mro__:
        if full_name(kind) in _ADAPTERS:
            adapter, methods = _ADAPTERS[full_name(kind)]
            found = [method for method in methods if method in overridden]
            if found:
                raise UnsupportedDetectorError(
                    f'{name} overrides {", ".join(found)} of {kind.__name__}, so that its boxes cannot be restated in '
                    f'standard operators; export its backbone and neck (cnv2 deploy --features).'
                )
            return adapter(part, *args)
        overridden |= set(vars(kind))
    raise UnsupportedDetectorError(
        f'{name} is not known here, so that its boxes cannot be restated in standard operators; '
        f'export its backbone and neck (cnv2 deploy --features).'
    )


def refuse(condition: Any, what: str, remedy: str) -> None:
    """Raise where the condition holds."""
    if condition:
        raise UnsupportedDetectorError(f'{what} cannot be restated in standard operators; {remedy}.')


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

    def __call__(self, priors: Tensor, deltas: Tensor, size: Optional[tuple[Size, Size]]) -> Tensor:
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

    def __call__(self, points: Tensor, distances: Tensor, size: Optional[tuple[Size, Size]]) -> Tensor:
        """Decode ``(N, P, 4)``, within an image of that height and width where one is given."""
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
        return clip(boxes, size) if self.clips and size else boxes
