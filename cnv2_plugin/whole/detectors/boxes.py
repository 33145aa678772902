"""What the post-processing of all detectors is made of: decoding, sorting and non-maximum suppression in fixed shapes.

Boxes ``(N, P, 4)`` have scores ``(N, P)``; one that is out has the score -1, so that no shape depends on values.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import log
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters import adapts, refuse

DECODING = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
"""Methods from raw outputs to boxes, which adapters restate."""
DEFAULT_COUNT = 300
"""Boxes of an image where the config does not say how many."""

_FLOAT, _BOOL = 1, 9
"""Types as ONNX numbers them."""

Size = Any
"""An integer, or a tensor while the exporter traces."""


class Frame(NamedTuple):
    """Sizes of images ``(N, 1, 1)`` in the upper left of an input."""

    height: Tensor
    width: Tensor
    input: tuple[Size, Size]

    def sides(self) -> Tensor:
        """Largest coordinates of boxes, ``(N, 1, 4)``."""
        return torch.cat((self.width, self.height) * 2, -1)


OUT = -1.0
"""Score of a box that is out. A score of 0 is in: sigmoids underflow."""

torch.library.define('cnv2_plugin::nms_keep', '(Tensor boxes, Tensor scores, float iou) -> Tensor')
nms_keep = torch.ops.cnv2_plugin.nms_keep.default


@torch.library.impl('cnv2_plugin::nms_keep', 'cpu')
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    from torchvision.ops import nms

    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        valid = (scores[image] >= 0).nonzero()[:, 0]
        kept[image, valid[nms(boxes[image, valid], scores[image, valid], iou)]] = True
    return kept


def write_as_standard_operators(opset: int) -> None:
    """Tell the exporter to write our operator in standard ones."""
    # A function without annotations: PyTorch 2.4 looks for classes of its own among them.
    torch.onnx.register_custom_op_symbolic(
        'cnv2_plugin::nms_keep', lambda g, boxes, scores, iou: _kept(g, boxes, scores, iou), opset
    )


def _kept(g: Any, boxes: Any, scores: Any, iou: Any) -> Any:
    """NonMaxSuppression, and its list of indices as a mask."""

    def constant(*values: float) -> Any:
        return g.op('Constant', value_t=torch.tensor(values))

    shape = g.op('Shape', scores)
    found = g.op(
        'NonMaxSuppression', boxes, g.op('Unsqueeze', scores, constant(1)), g.op('Gather', shape, constant(1)),
        g.op('Cast', iou, to_i=_FLOAT), constant(OUT / 2),
    )  # fmt: skip
    ones = g.op('Expand', constant(1), g.op('Shape', found, start_i=0, end_i=1))
    none = g.op('Expand', constant(0), shape)
    kept = g.op('ScatterND', none, g.op('Gather', found, constant(0, 2), axis_i=1), ones)
    return g.op('Cast', kept, to_i=_BOOL)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, agnostic: bool) -> Tensor:
    """Scores after suppression, within groups unless agnostic, which mmcv moves apart by the largest coordinate."""
    groups = torch.zeros_like(groups) if agnostic else groups
    valid = (scores >= 0).unsqueeze(-1)
    largest = torch.where(valid, boxes, torch.zeros_like(boxes)).amax((1, 2))
    moved = boxes + (groups.to(boxes) * (largest.unsqueeze(1) + 1)).unsqueeze(-1)
    return keep_where(nms_keep(moved, scores, iou), scores)


def keep_where(condition: Tensor, scores: Tensor) -> Tensor:
    """Scores in which those that do not meet the condition are out."""
    return torch.where(condition, scores, torch.full_like(scores, OUT))


def large_enough(boxes: Tensor, scores: Tensor, least: float) -> Tensor:
    """Scores in which boxes that are not larger than ``least`` both ways are out; all are in below 0."""
    return keep_where(((boxes[..., 2:] - boxes[..., :2]) > least).all(-1), scores) if least >= 0 else scores


def best(boxes: Tensor, scores: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` boxes of the highest scores; rows that stay empty are 0, 0 and -1."""
    scores, order = F.pad(scores, (0, count), value=OUT).topk(count)
    boxes, labels = rows(F.pad(boxes, (0, 0, 0, count)), order), F.pad(labels, (0, count)).gather(1, order)
    empty = scores < 0
    return boxes.masked_fill(empty.unsqueeze(-1), 0), scores.clamp(min=0), labels.masked_fill(empty, -1)


def rows(x: Tensor, order: Tensor) -> Tensor:
    """Rows ``(N, K, C)`` of ``(N, P, C)``."""
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.size(-1)))


def at_most(count: int, size: Size) -> Size:
    """The smaller one, also of a size that a trace follows."""
    return torch.minimum(size, torch.tensor(count)) if isinstance(size, Tensor) else min(count, size)


def flat(maps: Tensor, channels: int) -> Tensor:
    """``(N, A * C, H, W)`` as ``(N, H * W * A, C)``."""
    return maps.permute(0, 2, 3, 1).reshape(maps.size(0), -1, channels)


def clip(boxes: Tensor, size: Frame) -> Tensor:
    """Boxes within their images."""
    return torch.minimum(boxes.clamp(min=0), size.sides())


def centred(centres: Tensor, sizes: Tensor) -> Tensor:
    """Boxes of a size around centres, both ``(..., 2)``."""
    return torch.cat((centres - sizes / 2, centres + sizes / 2), -1)


def positive(cfg: Mapping[str, Any], name: str, default: Optional[int] = None) -> int:
    """A number of boxes in a test config."""
    value = cfg.get(name, default)
    refuse(value is None or value < 1, f'{name}={value} of the test config', f'give {name} a number of at least 1')
    return value


def suppression(cfg: Mapping[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """:func:`suppress` of boxes, scores and groups with the threshold of a test config."""
    nms: Any = cfg.get('nms')
    known = (
        nms and nms.get('type', 'nms') == 'nms' and {*nms} <= {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    )
    refuse(not known, f'nms={nms and dict(nms)} of the test config', "take dict(type='nms', iou_threshold=...)")
    return partial(suppress, iou=float(nms['iou_threshold']), agnostic=bool(nms.get('class_agnostic', False)))


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


class Head(nn.Module):
    """A head of MMDetection, and what an adapter makes of its outputs."""

    head: Any
    clips = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head


class SuppressingHead(Head):
    """One whose boxes suppress one another as its test config says."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        cfg = head.test_cfg
        self.count, self.suppress = positive(cfg, 'max_per_img', DEFAULT_COUNT), suppression(cfg)
        self.score_thr, self.least = float(cfg.get('score_thr', 0)), cfg.get('min_bbox_size', -1)
