"""Heads whose scores are those of an object times those of its class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import Frame, at_most, best, centred, flat, keep_where, large_enough, rows, suppress
from .registry import DECODING, DEFAULT_COUNT, adapts, full_name, iou_threshold, positive, refuse

_HEADS = 'mmdet.models.dense_heads'
_CODER = 'mmdet.models.task_modules.coders.yolo_bbox_coder.YOLOBBoxCoder'


@adapts(f'{_HEADS}.yolox_head.YOLOXHead', methods=(*DECODING, '_bbox_decode'))
class YOLOX(nn.Module):
    """One box for every place, of its best class; the head itself bounds their number by nothing."""

    head: Any
    clips = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head, cfg = head, head.test_cfg
        self.count, self.score_thr = positive(cfg, 'max_per_img', DEFAULT_COUNT), float(cfg['score_thr'])
        self.iou, self.agnostic = iou_threshold(cfg)

    def forward(self, features: Sequence[Tensor], size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels."""
        scored, regressed, objects = self.head(features)
        sizes = [maps.shape[-2:] for maps in scored]
        grids = self.head.prior_generator.grid_priors(sizes, scored[0].dtype, scored[0].device, with_stride=True)
        priors, deltas = torch.cat(grids), torch.cat([flat(maps, 4) for maps in regressed], 1)
        scores, labels = torch.cat([flat(maps, self.head.cls_out_channels) for maps in scored], 1).sigmoid().max(-1)
        scores = scores * torch.cat([flat(maps, 1)[..., 0] for maps in objects], 1).sigmoid()
        boxes = centred(deltas[..., :2] * priors[:, 2:] + priors[:, :2], deltas[..., 2:].exp() * priors[:, 2:])
        groups = torch.zeros_like(labels) if self.agnostic else labels
        scores = suppress(boxes, keep_where(scores >= self.score_thr, scores), groups, self.iou)
        return best(boxes, scores, labels, self.count)


@adapts(f'{_HEADS}.yolo_head.YOLOV3Head')
class YOLOv3(nn.Module):
    """Boxes of several shapes for every place, of every class."""

    head: Any
    clips = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head, cfg = head, head.test_cfg
        coder = full_name(type(head.bbox_coder))
        refuse(coder != _CODER, f'box coder {coder}', 'take YOLOBBoxCoder')
        self.nms_pre, self.count = positive(cfg, 'nms_pre'), positive(cfg, 'max_per_img', DEFAULT_COUNT)
        self.conf_thr, self.score_thr = cfg.get('conf_thr', -1), float(cfg.get('score_thr', 0))
        self.least, (self.iou, self.agnostic) = cfg.get('min_bbox_size', -1), iou_threshold(cfg)

    def forward(self, features: Sequence[Tensor], size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels."""
        (maps,) = self.head(features)
        grids = self.head.prior_generator.grid_priors([m.shape[-2:] for m in maps], maps[0].dtype, maps[0].device)
        boxes = []
        outputs = [flat(m, self.head.num_attrib) for m in maps]
        for output, grid, stride in zip(outputs, grids, self.head.featmap_strides):
            centres = (grid[:, :2] + grid[:, 2:]) * 0.5 + (output[..., :2].sigmoid() - 0.5) * stride
            boxes.append(centred(centres, (grid[:, 2:] - grid[:, :2]) * output[..., 2:4].exp()))
        output = torch.cat(outputs, 1)
        objects, scores = output[..., 4].sigmoid(), output[..., 5:].sigmoid()
        classes = scores.size(-1)
        if self.conf_thr > 0:
            scores = keep_where((objects >= self.conf_thr).unsqueeze(-1), scores)
        scores = scores.flatten(1)
        scores, order = scores.topk(at_most(self.nms_pre, scores.size(1)))
        place, labels = order // classes, order % classes
        scores = keep_where(scores > max(self.score_thr, -0.5), scores * objects.gather(1, place))
        found = rows(torch.cat(boxes, 1), place)
        groups = torch.zeros_like(labels) if self.agnostic else labels
        scores = suppress(found, large_enough(found, scores, self.least), groups, self.iou)
        return best(found, scores, labels, self.count)
