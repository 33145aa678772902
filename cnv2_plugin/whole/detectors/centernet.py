"""Heads that find the centres of objects as local maxima of a heat map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import Frame, at_most, best, centred, flat, rows
from .registry import DECODING, adapts, positive


@adapts(
    'mmdet.models.dense_heads.centernet_head.CenterNetHead', methods=(*DECODING, '_decode_heatmap', '_bboxes_nms')
)  # fmt: skip
class CenterNet(nn.Module):
    """As many boxes as ``topk`` says; nothing is suppressed."""

    head: Any
    clips = False

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head, self.kernel = head, head.test_cfg['local_maximum_kernel']
        self.count = positive(head.test_cfg, 'topk')

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
