"""Detectors whose second stage looks at the proposals of the first one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import adapt, adapts, full_name, refuse
from .boxes import DECODING, OUT, Frame, Head, best, keep_where, positive, suppression

Features = Sequence[Tensor]
_HEADS = 'mmdet.models.roi_heads'


@adapts(f'{_HEADS}.roi_extractors.single_level_roi_extractor.SingleRoIExtractor', methods=('forward', 'map_roi_levels'))
class Pooling(nn.Module):
    """Features of boxes, each from the level of its size."""

    extractor: Any

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor
        for layer in extractor.roi_layers:
            name = full_name(type(layer))
            refuse(name != 'mmcv.ops.roi_align.RoIAlign', name, 'take RoIAlign')
            refuse(layer.pool_mode != 'avg', f'pool_mode={layer.pool_mode!r} of RoIAlign', "take 'avg'")

    def forward(self, features: Features, boxes: Tensor) -> Tensor:
        """Map ``(N, P, 4)`` to ``(N * P, C, h, w)``; a box of another level is empty, which costs nothing."""
        from torchvision.ops import roi_align

        batch, count, _ = boxes.shape
        image = torch.arange(batch, device=boxes.device).view(-1, 1).expand(-1, count).reshape(-1, 1).to(boxes)
        rois = torch.cat((image, boxes.reshape(-1, 4)), -1)
        layers = self.extractor.roi_layers
        levels = self.extractor.map_roi_levels(rois, len(layers))
        found = torch.zeros(())
        for i, (layer, maps) in enumerate(zip(layers, features)):
            here = (levels == i).unsqueeze(-1)
            own = torch.cat((rois[:, :1], rois[:, 1:] * here), -1)
            pooled = roi_align(
                maps, own, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
            )  # fmt: skip
            found = torch.where(here.view(-1, 1, 1, 1), pooled, found)  # not a sum: OpenVINO makes NaN of empty boxes
        return found


@adapts(f'{_HEADS}.bbox_heads.bbox_head.BBoxHead', methods=(*DECODING, 'regress_by_class'))
class BoxHead(Head):
    """Logits and boxes of proposals."""

    def __init__(self, head: Any) -> None:
        super().__init__(head)
        name = full_name(type(head))
        refuse(head.custom_activation or head.custom_cls_channels, f'{type(head.loss_cls).__name__} of {name}',
               'take another loss')  # fmt: skip
        refuse(not (head.with_reg and head.with_cls), f'{name} without classes or boxes', 'take both')
        self.decode, self.classes = adapt(head.bbox_coder), head.num_classes

    def forward(self, pooled: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, P, classes + 1)`` and deltas ``(N, P, 1 or classes, 4)``."""
        logits, deltas = self.head(pooled)
        shape = proposals.shape[:2]
        return logits.view(*shape, -1), deltas.view(*shape, -1, 4)

    def boxes(self, proposals: Tensor, deltas: Tensor, size: Frame) -> Tensor:
        """A box of every class ``(N, P * classes, 4)``."""
        priors = proposals.unsqueeze(2).expand(-1, -1, self.classes, -1).flatten(1, 2)
        return self.decode(priors, deltas.expand(-1, -1, self.classes, -1).flatten(1, 2), size)

    def refined(self, proposals: Tensor, logits: Tensor, deltas: Tensor, size: Frame) -> Tensor:
        """The box of the best class ``(N, P, 4)``."""
        chosen = logits[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
        own = deltas if self.head.reg_class_agnostic else deltas.gather(2, chosen)
        return self.decode(proposals, own.squeeze(2), size)


@adapts(f'{_HEADS}.mask_heads.fcn_mask_head.FCNMaskHead', methods=DECODING)
class MaskHead(Head):
    """Masks of boxes, before they are pasted into the image."""

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Map the features of ``(N, K)`` boxes to masks ``(N, K, h, w)``."""
        masks = self.head(pooled).sigmoid()
        if not self.head.class_agnostic:
            chosen = labels.clamp(min=0).reshape(-1, 1, 1, 1)
            masks = masks.gather(1, chosen.expand(-1, -1, *masks.shape[2:]))
        return masks.view(*labels.shape, *masks.shape[2:])


_PREDICTION = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward', '_refine_roi')


@adapts(
    f'{_HEADS}.standard_roi_head.StandardRoIHead', f'{_HEADS}.cascade_roi_head.CascadeRoIHead', methods=_PREDICTION
)  # fmt: skip
class SecondStage(nn.Module):
    """One or several box heads after each other, and masks of what they find."""

    heads: Any

    def __init__(self, roi: Any) -> None:
        super().__init__()
        refuse(roi.with_shared_head, f'the shared head of {full_name(type(roi))}', 'take one without')
        several, cfg = isinstance(roi.bbox_head, nn.ModuleList), roi.test_cfg

        def adapted(parts: Any) -> nn.ModuleList:
            return nn.ModuleList(adapt(part) for part in (parts if several else [parts]))

        self.poolings, self.heads = adapted(roi.bbox_roi_extractor), adapted(roi.bbox_head)
        self.with_mask = roi.with_mask
        if roi.with_mask:
            self.masks = adapted(roi.mask_head)
            self.mask_poolings = adapted(roi.mask_roi_extractor)
        self.count, self.score_thr = positive(cfg, 'max_per_img'), float(cfg['score_thr'])
        self.suppress = suppression(cfg)

    def forward(self, features: Features, proposals: Tensor, exists: Tensor, size: Frame) -> tuple:
        """Map proposals ``(N, P, 4)`` to boxes, scores, labels and, where there is a mask head, masks."""
        logits: list[Tensor] = []
        deltas = proposals
        for stage, (pooling, head) in enumerate(zip(self.poolings, self.heads)):
            if stage:
                proposals = self.heads[stage - 1].refined(proposals, logits[-1], deltas, size)
            found, deltas = head(pooling(features, proposals), proposals)
            logits.append(found)
        classes = self.heads[-1].classes
        scores = torch.stack(logits).mean(0).softmax(-1)[..., :classes]
        scores = keep_where((scores > max(self.score_thr, OUT / 2)) & exists.unsqueeze(-1), scores).flatten(1)
        boxes = self.heads[-1].boxes(proposals, deltas, size)
        labels = torch.arange(classes, device=scores.device).expand(*exists.shape, -1).flatten(1)
        boxes, scores, labels = best(boxes, self.suppress(boxes, scores, labels), labels, self.count)
        if not self.with_mask:
            return boxes, scores, labels
        stages = [head(pooling(features, boxes), labels) for pooling, head in zip(self.mask_poolings, self.masks)]
        return boxes, scores, labels, torch.stack(stages).mean(0)
