"""A detector as one module, from normalised images to boxes."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from . import centernet, dense, two_stage, voting, yolo  # noqa: F401 -- they register what they adapt
from .boxes import Frame
from .registry import adapt, adapts

_DETECTORS = 'mmdet.models.detectors'
_PREDICTION = ('predict', 'extract_feat')


class WholeDetector(nn.Module):
    """Backbone, neck, head and post-processing of a detector.

    Args:
        model: the detector, in eval mode.
    """

    names = ['boxes', 'scores', 'labels']
    """Of the outputs."""
    count: int
    """Boxes of an image."""
    clips: bool
    """Whether boxes end at the border of the image."""
    minds_padding: bool
    """Whether padding changes what is found."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        raise NotImplementedError

    def forward(self, images: Tensor, sizes: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        """Map ``(N, C, H, W)`` to boxes ``(N, K, 4)`` in pixels, scores and labels ``(N, K)``, and the masks.

        Args:
            images: normalised.
            sizes: height and width ``(N, 2)`` of those that are padded below and to the right; 0 for the others.
        """
        whole = images.shape[-2:]
        sizes = images.new_zeros(1, 2, dtype=torch.int64) if sizes is None else sizes
        sizes = sizes.expand(images.size(0), 2)
        sides = [torch.where(side > 0, side, most) for side, most in zip(sizes.unbind(1), whole)]
        height, width = (side.to(images).view(-1, 1, 1) for side in sides)
        return self.detect(self.neck(self.backbone(images)), Frame(height, width, (whole[0], whole[1])))


@adapts(f'{_DETECTORS}.single_stage.SingleStageDetector', methods=_PREDICTION)
class SingleStage(WholeDetector):
    """Boxes straight from the maps."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = adapt(model.bbox_head)
        self.count, self.clips = self.head.count, self.head.clips
        self.minds_padding = self.clips

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores and labels of images of that height and width."""
        return self.head(features, size)


@adapts(f'{_DETECTORS}.two_stage.TwoStageDetector', methods=_PREDICTION)
class TwoStage(WholeDetector):
    """Proposals, then boxes, then masks where the model has them."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.proposals, self.head = adapt(model.rpn_head), adapt(model.roi_head)
        self.count, self.clips = self.head.count, self.head.heads[-1].decode.clips
        self.minds_padding = self.proposals.clips or any(head.decode.clips for head in self.head.heads)
        if self.head.with_mask:
            self.names = [*self.names, 'masks']

    def detect(self, features: Any, size: Frame) -> tuple[Tensor, ...]:
        """Map the neck's maps to boxes, scores, labels and masks of images of that height and width."""
        boxes, _, labels = self.proposals(features, size)
        return self.head(features, boxes, labels >= 0, size)
