"""Heads that find a box, or one of each of a few shapes, at every place of a map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import adapts, full_name, refuse
from .boxes import (
    DECODING,
    Frame,
    Head,
    SuppressingHead,
    at_most,
    best,
    centred,
    flat,
    keep_where,
    large_enough,
    positive,
    rows,
)

_HEADS = 'mmdet.models.dense_heads'
_CODER = 'mmdet.models.task_modules.coders.yolo_bbox_coder.YOLOBBoxCoder'


@adapts(f'{_HEADS}.yolox_head.YOLOXHead', methods=(*DECODING, '_bbox_decode'))
class YOLOX(SuppressingHead):
    """One box for every place, of its best class; the head itself bounds their number by nothing."""

    def forward(self, features: Sequence[Tensor], size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels."""
        scored, regressed, objects = self.head(features)
        sizes = [maps.shape[-2:] for maps in scored]
        grids = self.head.prior_generator.grid_priors(sizes, scored[0].dtype, scored[0].device, with_stride=True)
        priors, deltas = torch.cat(grids), torch.cat([flat(maps, 4) for maps in regressed], 1)
        scores, labels = torch.cat([flat(maps, self.head.cls_out_channels) for maps in scored], 1).sigmoid().max(-1)
        scores = scores * torch.cat([flat(maps, 1)[..., 0] for maps in objects], 1).sigmoid()
        boxes = centred(deltas[..., :2] * priors[:, 2:] + priors[:, :2], deltas[..., 2:].exp() * priors[:, 2:])
        scores = self.suppress(boxes, keep_where(scores >= self.score_thr, scores), labels)
        return best(boxes, scores, labels, self.count)


@adapts(f'{_HEADS}.yolo_head.YOLOV3Head', methods=DECODING)
class YOLOv3(SuppressingHead):
    """Boxes of several shapes for every place, of every class."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        coder = full_name(type(head.bbox_coder))
        refuse(coder != _CODER, f'box coder {coder}', 'take YOLOBBoxCoder')
        self.nms_pre, self.conf_thr = positive(head.test_cfg, 'nms_pre'), head.test_cfg.get('conf_thr', -1)

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
        scores = self.suppress(found, large_enough(found, scores, self.least), labels)
        return best(found, scores, labels, self.count)


@adapts(f'{_HEADS}.centernet_head.CenterNetHead', methods=(*DECODING, '_decode_heatmap', '_bboxes_nms'))
class CenterNet(Head):
    """Local maxima of a heat map, as many as ``topk`` says; nothing is suppressed."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.kernel, self.count = head.test_cfg['local_maximum_kernel'], positive(head.test_cfg, 'topk')

    def forward(self, features: Sequence[Tensor], size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        (heat,), (sizes,), (offsets,) = self.head(features)
        height, width = heat.shape[2:]
        peaks = F.max_pool2d(heat, self.kernel, 1, (self.kernel - 1) // 2) == heat
        scores = (heat * peaks.to(heat)).flatten(1)
        scores, order = scores.topk(at_most(self.count, scores.size(1)))
        labels, place = order // (height * width), order % (height * width)
        centres = torch.stack((place % width, place // width), -1) + rows(flat(offsets, 2), place)
        boxes = centred(centres, rows(flat(sizes, 2), place))
        x, y = boxes[..., 0::2] * (size.input[1] / width), boxes[..., 1::2] * (size.input[0] / height)
        return best(torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1), scores, labels, self.count)
