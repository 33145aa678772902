"""Detectors whose queries look at the whole image."""

from typing import Any

import torch
from torch import Tensor, nn

from .boxes import Frame, best, centred, clip, rows
from .registry import DECODING, adapt, adapts
from .whole import WholeDetector

_STEPS = (
    'predict', 'extract_feat', 'forward_transformer', 'pre_transformer', 'forward_encoder', 'pre_decoder',
    'forward_decoder',
)  # fmt: skip


@adapts('mmdet.models.dense_heads.detr_head.DETRHead', methods=(*DECODING, 'forward'))
class QueryHead(nn.Module):
    """A box for every query; nothing is suppressed."""

    head: Any

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, count: int, size: Frame) -> tuple[Tensor, ...]:
        """Map the decoder's states ``(1, N, Q, C)`` to so many boxes, scores and labels."""
        logits, boxes = (outputs[-1] for outputs in self.head(hidden))
        if self.head.loss_cls.use_sigmoid:
            classes = logits.size(-1)
            scores, order = logits.sigmoid().flatten(1).topk(count)
            boxes, labels = rows(boxes, order // classes), order % classes
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        boxes = centred(boxes[..., :2], boxes[..., 2:])
        x, y = boxes[..., 0::2] * size.width, boxes[..., 1::2] * size.height
        boxes = torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)
        return best(clip(boxes, size), scores, labels, count)


@adapts('mmdet.models.detectors.detr.DETR', methods=_STEPS)
class QueryDetector(WholeDetector):
    """DETR, whose attention leaves padding out."""

    clips = minds_padding = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.places, self.encoder, self.decoder = model.positional_encoding, model.encoder, model.decoder
        self.queries, self.head = model.query_embedding, adapt(model.bbox_head)
        self.count = (model.bbox_head.test_cfg or {}).get('max_per_img', model.num_queries)

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        maps = features[-1]
        shape = (*maps.shape[:2], -1)
        rows, columns = (
            torch.arange(count, device=maps.device) * most >= side[:, 0] * count
            for count, most, side in zip(maps.shape[2:], size.input, size[:2])
        )
        padding = rows.unsqueeze(2) | columns.unsqueeze(1)
        memory = maps.reshape(shape).transpose(1, 2)
        places = self.places(padding).reshape(shape).transpose(1, 2)
        memory = self.encoder(query=memory, query_pos=places, key_padding_mask=padding.flatten(1))
        queries = self.queries.weight.unsqueeze(0).repeat(maps.size(0), 1, 1)
        hidden = self.decoder(
            query=torch.zeros_like(queries), key=memory, value=memory, query_pos=queries, key_pos=places,
            key_padding_mask=padding.flatten(1),
        )  # fmt: skip
        return self.head(hidden[-1].unsqueeze(0), self.count, size)
