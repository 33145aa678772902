"""Heads that give scores and boxes for every prior of every level, and suppress what overlaps."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import OUT, Frame, at_most, best, flat, keep_where, large_enough, rows, suppress
from .registry import DECODING, DEFAULT_COUNT, adapt, adapts, full_name, iou_threshold, positive, refuse

Features = Sequence[Tensor]
_HEADS = 'mmdet.models.dense_heads'


@adapts(
    f'{_HEADS}.retina_head.RetinaHead',
    f'{_HEADS}.retina_sepbn_head.RetinaSepBNHead',
    f'{_HEADS}.fcos_head.FCOSHead',
    f'{_HEADS}.atss_head.ATSSHead',
    f'{_HEADS}.rtmdet_head.RTMDetHead',
    f'{_HEADS}.ssd_head.SSDHead',
)
class Dense(nn.Module):
    """Heads that decode as ``BaseDenseHead`` does."""

    head: Any

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head, cfg = head, head.test_cfg
        loss = getattr(head, 'loss_cls', None)
        refuse(getattr(loss, 'custom_cls_channels', False), full_name(type(loss)), 'take another loss')
        self.decode, self.channels = adapt(head.bbox_coder), 4
        self.clips = self.decode.clips
        self.nms_pre, self.count = self.limit(cfg), positive(cfg, 'max_per_img', DEFAULT_COUNT)
        self.score_thr, self.least = float(cfg.get('score_thr', 0)), cfg.get('min_bbox_size', -1)
        self.iou, self.agnostic = iou_threshold(cfg)

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
        return torch.zeros_like(labels) if self.agnostic else labels

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
        scores = suppress(boxes, large_enough(boxes, scores, self.least), self.groups(labels, levels), self.iou)
        return best(boxes, scores, labels, self.count)


@adapts(f'{_HEADS}.rpn_head.RPNHead')
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
        return torch.zeros_like(labels) if self.agnostic else levels


@adapts(f'{_HEADS}.gfl_head.GFLHead')
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
