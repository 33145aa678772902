"""Heads that give scores and boxes for every prior of every level, or for every place of a map."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import adapt, adapts, full_name, refuse
from .boxes import (
    DECODING,
    OUT,
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

Features = Sequence[Tensor]
_HEADS = 'mmdet.models.dense_heads'
_CODER = 'mmdet.models.task_modules.coders.yolo_bbox_coder.YOLOBBoxCoder'
LEAST, WIDTH = 0.01, 0.025
"""Overlap that counts, and how fast the weight of a smaller one falls, as MMDetection has them."""


@adapts(
    f'{_HEADS}.retina_head.RetinaHead',
    f'{_HEADS}.retina_sepbn_head.RetinaSepBNHead',
    f'{_HEADS}.fcos_head.FCOSHead',
    f'{_HEADS}.atss_head.ATSSHead',
    f'{_HEADS}.rtmdet_head.RTMDetHead',
    f'{_HEADS}.ssd_head.SSDHead',
    methods=DECODING,
)
class Dense(SuppressingHead):
    """Heads that decode as ``BaseDenseHead`` does."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        loss = getattr(head, 'loss_cls', None)
        refuse(getattr(loss, 'custom_cls_channels', False), full_name(type(loss)), 'take another loss')
        self.decode, self.channels = adapt(head.bbox_coder), 4
        self.clips = self.decode.clips
        self.nms_pre = self.limit(head.test_cfg)

    def limit(self, cfg: Mapping[str, Any]) -> int:
        """Boxes of a level that are looked at."""
        return positive(cfg, 'nms_pre')

    def outputs(self, features: Features) -> tuple[Features, ...]:
        """Scores and boxes, and factors of the scores where the head has them; of each a map for every level."""
        return self.head(features)

    def scores(self, maps: Tensor) -> Tensor:
        """Scores ``(N, P, classes)``."""
        logits = flat(maps, self.head.cls_out_channels)
        return logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]

    def boxes(self, level: int, priors: Tensor, regressed: Tensor, size: Frame) -> Tensor:
        """Boxes ``(N, P, 4)``."""
        return self.decode(priors, regressed, size)

    def groups(self, labels: Tensor, levels: Tensor) -> Tensor:
        """Boxes of different groups do not suppress each other."""
        return labels

    def forward(self, features: Features, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        scored, regressed, *factors = self.outputs(features)
        grids = self.head.prior_generator.grid_priors([m.shape[-2:] for m in scored], scored[0].dtype, scored[0].device)
        found = []
        for level, (maps, deltas, priors) in enumerate(zip(scored, regressed, grids)):
            scores = self.scores(maps)
            classes, scores = scores.size(-1), scores.flatten(1)
            scores, order = scores.topk(at_most(self.nms_pre, scores.size(1)))
            place, valid = order // classes, scores > self.score_thr
            if factors:
                scores = scores * flat(factors[0][level], 1)[..., 0].sigmoid().gather(1, place)
            priors = rows(priors.unsqueeze(0).expand(maps.size(0), -1, -1), place)
            boxes = self.boxes(level, priors, rows(flat(deltas, self.channels), place), size)
            found.append((boxes, keep_where(valid, scores), order % classes, torch.full_like(order, level)))
        boxes, scores, labels, levels = (torch.cat(parts, 1) for parts in zip(*found))
        scores = self.suppress(boxes, large_enough(boxes, scores, self.least), self.groups(labels, levels))
        return best(boxes, scores, labels, self.count)


@adapts(f'{_HEADS}.rpn_head.RPNHead', methods=DECODING)
class Proposals(Dense):
    """Region proposals, as boxes of class 0; those of different levels do not suppress each other."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.score_thr = OUT

    def limit(self, cfg: Mapping[str, Any]) -> int:
        """Every box where the config says no number."""
        return cfg.get('nms_pre', -1) if cfg.get('nms_pre', -1) > 0 else sys.maxsize

    def groups(self, labels: Tensor, levels: Tensor) -> Tensor:
        """Levels."""
        return levels


@adapts(f'{_HEADS}.gfl_head.GFLHead', methods=DECODING)
class GeneralizedFocal(Dense):
    """Distances as distributions."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.channels = 4 * (head.reg_max + 1)

    def boxes(self, level: int, priors: Tensor, regressed: Tensor, size: Frame) -> Tensor:
        """Decode the means of the distributions."""
        shares = regressed.reshape(*regressed.shape[:2], 4, -1).softmax(-1)
        distances = (shares * self.head.integral.project).sum(-1) * self.head.prior_generator.strides[level][0]
        return self.decode((priors[..., :2] + priors[..., 2:]) / 2, distances, size)


@adapts(f'{_HEADS}.tood_head.TOODHead', methods=(*DECODING, 'forward', 'deform_sampling'))
class TaskAligned(Dense):
    """Boxes from neighbouring places, which the head samples by a deformable convolution."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        self.clips = False

    def scores(self, maps: Tensor) -> Tensor:
        """Scores, which the head gives as they are."""
        return flat(maps, self.head.cls_out_channels)

    def boxes(self, level: int, priors: Tensor, regressed: Tensor, size: Frame) -> Tensor:
        """Boxes in pixels instead of strides."""
        return regressed * self.head.prior_generator.strides[level][0]

    def outputs(self, features: Features) -> tuple[Features, ...]:
        """Restate the head's ``forward`` for any number of images."""
        head, outputs = self.head, []
        for level, (x, scale, stride) in enumerate(zip(features, head.scales, head.prior_generator.strides)):
            priors = head.prior_generator.single_level_grid_priors(x.shape[-2:], level, x.dtype, x.device) / stride[0]
            batch, _, height, width = x.shape
            tasks = []
            for conv in head.inter_convs:
                x = conv(x)
                tasks.append(x)
            x = torch.cat(tasks, 1)
            pooled = x.mean((2, 3), keepdim=True)
            logits = head.tood_cls(head.cls_decomp(x, pooled))
            scores = (logits.sigmoid() * head.cls_prob_module(x).sigmoid()).sqrt()
            regressed = head.tood_reg(head.reg_decomp(x, pooled))
            if head.anchor_type == 'anchor_free':
                distances = flat(scale(regressed.exp()), 4)
                centres = (priors[:, :2] + priors[:, 2:]) / 2
                boxes = torch.cat((centres - distances[..., :2], centres + distances[..., 2:]), -1)
            else:
                boxes = self.decode(priors, flat(scale(regressed), 4), None)
            boxes = boxes.transpose(1, 2).reshape(batch, 4, height, width)
            moved = sampled(boxes, head.reg_offset_module(x))
            inverted = (moved[:, :2] > moved[:, 2:]).any(1, keepdim=True)
            outputs.append((scores, torch.where(inverted, boxes, moved)))
        return tuple(zip(*outputs))


def sampled(maps: Tensor, offsets: Tensor) -> Tensor:
    """Each channel of ``(N, C, H, W)`` sampled at its own ``(dy, dx)`` of ``(N, 2 * C, H, W)`` from every place."""
    batch, channels, height, width = maps.shape
    shifts = offsets.reshape(-1, 2, height, width)
    y = torch.arange(height, device=maps.device).view(-1, 1) + shifts[:, 0]
    x = torch.arange(width, device=maps.device) + shifts[:, 1]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    result = F.grid_sample(maps.reshape(-1, 1, height, width), grid, align_corners=False)
    return result.reshape(batch, channels, height, width)


@adapts(f'{_HEADS}.paa_head.PAAHead', methods=(*DECODING, 'score_voting'))
class ProbabilisticAnchors(Dense):
    """As ATSS, with scores that are geometric means, and votes on the boxes that are left."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        refuse(not head.use_sigmoid_cls, f'softmax in {full_name(type(head))}', 'take a loss with use_sigmoid=True')

    def forward(self, features: Features, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        scored, regressed, factors = self.outputs(features)
        grids = self.head.prior_generator.grid_priors([m.shape[-2:] for m in scored], scored[0].dtype, scored[0].device)
        found = []
        for level, (maps, deltas, factor, priors) in enumerate(zip(scored, regressed, factors, grids)):
            scores = (self.scores(maps) * flat(factor, 1).sigmoid()).sqrt()
            order = scores.amax(-1).topk(at_most(self.nms_pre, scores.size(1)))[1]
            priors = rows(priors.unsqueeze(0).expand(maps.size(0), -1, -1), order)
            found.append((self.boxes(level, priors, rows(flat(deltas, 4), order), size), rows(scores, order)))
        boxes, scores = (torch.cat(parts, 1) for parts in zip(*found))
        classes = scores.size(-1)
        scores = keep_where(scores > self.score_thr, scores)
        labels = torch.arange(classes, device=scores.device).expand(scores.shape).flatten(1)
        each = boxes.unsqueeze(2).expand(-1, -1, classes, -1).flatten(1, 2)
        left = self.suppress(each, scores.flatten(1), labels)
        kept, values, labels = best(each, left, labels, self.count)
        return (voted(kept, labels, boxes, scores) if self.head.with_score_voting else kept), values, labels


def voted(kept: Tensor, labels: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    """Boxes ``(N, K, 4)`` as means of those ``(N, P, 4)`` around them, by their scores ``(N, P, classes)``."""
    chosen = labels.clamp(min=0).unsqueeze(-1).expand(-1, -1, scores.size(1))
    own = scores.transpose(1, 2).gather(1, chosen)
    overlap = overlaps(kept, boxes)
    weights = (-((1 - overlap) ** 2) / WIDTH).exp() * own
    weights = torch.where((own >= 0) & (overlap > LEAST), weights, torch.zeros_like(weights))
    means = weights @ boxes / weights.sum(-1, keepdim=True)
    return torch.where((labels >= 0).unsqueeze(-1), means, torch.zeros_like(means))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union ``(N, K, P)`` of boxes ``(N, K, 4)`` and ``(N, P, 4)``."""
    a, b = a.unsqueeze(2), b.unsqueeze(1)
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    common = sides[..., 0] * sides[..., 1]
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-6)


@adapts(f'{_HEADS}.yolox_head.YOLOXHead', methods=(*DECODING, '_bbox_decode'))
class YOLOX(SuppressingHead):
    """One box for every place, of its best class; the head itself bounds their number by nothing."""

    def forward(self, features: Features, size: Frame) -> tuple[Tensor, ...]:
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

    def forward(self, features: Features, size: Frame) -> tuple[Tensor, ...]:
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

    def forward(self, features: Features, size: Frame) -> tuple[Tensor, ...]:
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
