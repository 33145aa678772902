"""Heads whose boxes are means of all boxes around them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .boxes import Frame, at_most, best, flat, keep_where, rows, suppress
from .dense import Dense
from .registry import DECODING, adapts, full_name, refuse

LEAST, WIDTH = 0.01, 0.025
"""Overlap that counts, and how fast the weight of a smaller one falls, as MMDetection has them."""


@adapts('mmdet.models.dense_heads.paa_head.PAAHead', methods=(*DECODING, 'score_voting'))
class ProbabilisticAnchors(Dense):
    """As ATSS, with scores that are geometric means, and votes on the boxes that are left."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        refuse(not head.use_sigmoid_cls, f'softmax in {full_name(type(head))}', 'take a loss with use_sigmoid=True')

    def forward(self, features: Sequence[Tensor], size: Frame) -> tuple[Tensor, ...]:
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
        groups = torch.zeros_like(labels) if self.agnostic else labels
        left = suppress(each, scores.flatten(1), groups, self.iou)
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
