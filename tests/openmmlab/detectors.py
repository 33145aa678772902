"""Small detectors of MMDetection on our backbone, one for every head, with random weights that find boxes."""

from copy import deepcopy
from typing import Optional

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.helpers import finish_pruning, randomize_norms

from .stand_ins import ARCH, CLASSES

WIDTH = 16
STRIDES = [4, 8, 16]
BACKBONE = dict(
    type='CondenseNetV2', arch={**ARCH, 'layers': (1, 1, 2, 1), 'growth': (4, 8, 12, 8)}, out_indices=(1, 2, 3),
    out_norm=True,
)  # fmt: skip
TEST_CFG = dict(
    nms_pre=60, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=30
)  # fmt: skip
PLAIN = dict(num_classes=CLASSES, in_channels=WIDTH, stacked_convs=1, feat_channels=WIDTH)
ANCHORS = dict(
    type='AnchorGenerator', octave_base_scale=6, scales_per_octave=2, ratios=[0.5, 1.0], strides=STRIDES
)  # fmt: skip
SQUARES = dict(
    type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=STRIDES
)  # fmt: skip
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=STRIDES)
FOCAL = dict(type='FocalLoss', use_sigmoid=True, loss_weight=1.0)
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
TOOD = dict(
    PLAIN, stacked_convs=2, anchor_generator=SQUARES, bbox_coder=DELTAS, norm_cfg=dict(type='GN', num_groups=4)
)  # fmt: skip
PRIORS = dict(
    type='AnchorGenerator', scales=[6], ratios=[0.5, 1.0, 2.0], strides=STRIDES
)  # fmt: skip
RPN = dict(
    type='RPNHead', in_channels=WIDTH, feat_channels=WIDTH, anchor_generator=PRIORS,
    bbox_coder=dict(type='DeltaXYWHBBoxCoder'), loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
    loss_bbox=dict(type='L1Loss'),
)  # fmt: skip
RPN_TEST = dict(nms_pre=80, max_per_img=40, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=8)
EXTRACTOR = dict(
    type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), out_channels=WIDTH,
    featmap_strides=STRIDES, finest_scale=14,
)  # fmt: skip


def box_head(agnostic: bool = False) -> dict:
    return dict(
        type='Shared2FCBBoxHead', in_channels=WIDTH, fc_out_channels=32, roi_feat_size=7, num_classes=CLASSES,
        bbox_coder=DELTAS, reg_class_agnostic=agnostic, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox=dict(type='L1Loss'),
    )  # fmt: skip


def dense(**head: object) -> dict:
    return dict(type='SingleStageDetector', bbox_head=head, test_cfg=TEST_CFG)


def two_stage(roi: str = 'StandardRoIHead', **parts: object) -> dict:
    parts = {'bbox_head': box_head(), **parts}
    rcnn = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)
    return dict(
        type='TwoStageDetector', rpn_head=RPN, test_cfg=dict(rpn=RPN_TEST, rcnn=rcnn),
        roi_head=dict(type=roi, bbox_roi_extractor=EXTRACTOR, **parts),
    )  # fmt: skip


MASKS = dict(
    mask_roi_extractor=dict(EXTRACTOR, roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
    mask_head=dict(
        type='FCNMaskHead', num_convs=1, in_channels=WIDTH, conv_out_channels=WIDTH, num_classes=CLASSES,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    ),
)  # fmt: skip


def attention(count: int) -> dict:
    parts = ('self_attn', 'cross_attn')[:count]
    heads = dict(embed_dims=WIDTH, num_heads=4, batch_first=True)
    more = dict(return_intermediate=True) if count == 2 else {}
    return dict(
        num_layers=2,
        layer_cfg=dict(
            **{f'{part}_cfg': heads for part in parts}, ffn_cfg=dict(embed_dims=WIDTH, feedforward_channels=32)
        ),
        **more,
    )


def detr(sigmoid: bool) -> dict:
    return dict(
        type='DETR', num_queries=30, encoder=attention(1), decoder=attention(2),
        positional_encoding=dict(num_feats=WIDTH // 2, normalize=True),
        bbox_head=dict(
            type='DETRHead', num_classes=CLASSES, embed_dims=WIDTH,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=sigmoid, class_weight=None if sigmoid else 1.0)),
        test_cfg=dict(max_per_img=20),
    )  # fmt: skip


DETECTORS = dict(
    retinanet=dense(type='RetinaHead', anchor_generator=ANCHORS, loss_cls=FOCAL, **PLAIN),
    softmax_retinanet=dense(
        type='RetinaHead', anchor_generator=ANCHORS, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False), **PLAIN
    ),
    fcos=dense(
        type='FCOSHead', strides=STRIDES, norm_on_bbox=True, centerness_on_reg=True, norm_cfg=None, **PLAIN
    ),
    atss=dense(
        type='ATSSHead', anchor_generator=SQUARES, bbox_coder=DELTAS, norm_cfg=dict(type='GN', num_groups=4), **PLAIN
    ),
    paa=dense(
        type='PAAHead', anchor_generator=SQUARES, bbox_coder=DELTAS, norm_cfg=dict(type='GN', num_groups=4),
        reg_decoded_bbox=False, score_voting=True, **PLAIN
    ),
    gfl=dense(type='GFLHead', anchor_generator=SQUARES, reg_max=8, loss_cls=dict(
        type='QualityFocalLoss', use_sigmoid=True), norm_cfg=dict(type='GN', num_groups=4), **PLAIN),
    tood=dense(type='TOODHead', anchor_type='anchor_free', **TOOD),
    tood_anchors=dense(type='TOODHead', anchor_type='anchor_based', **TOOD),
    rtmdet=dense(
        type='RTMDetSepBNHead', anchor_generator=POINTS, bbox_coder=dict(type='DistancePointBBoxCoder'),
        with_objectness=False, exp_on_reg=True, share_conv=True, norm_cfg=dict(type='BN'), **PLAIN
    ),
    rtmdet_plain=dense(
        type='RTMDetHead', anchor_generator=POINTS, bbox_coder=dict(type='DistancePointBBoxCoder'),
        norm_cfg=dict(type='BN'), **PLAIN
    ),
    yolox={**dense(type='YOLOXHead', **PLAIN), 'test_cfg': dict(
        score_thr=0.2, nms=dict(type='nms', iou_threshold=0.6))},
    yolov3={**dense(
        type='YOLOV3Head', num_classes=CLASSES, in_channels=[WIDTH] * 3, out_channels=[WIDTH] * 3,
        featmap_strides=STRIDES[::-1],
        anchor_generator=dict(type='YOLOAnchorGenerator', base_sizes=[[(16, 20)], [(24, 30)], [(40, 50)]],
                              strides=STRIDES[::-1])),
        'test_cfg': dict(TEST_CFG, conf_thr=0.3)},
    ssd=dense(
        type='SSDHead', in_channels=[WIDTH] * 3, num_classes=CLASSES, bbox_coder=DELTAS,
        anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False, strides=STRIDES, ratios=[[2], [2, 3], [2]],
                              min_sizes=[16, 32, 48], max_sizes=[32, 48, 64]),
    ),
    centernet={**dense(
        type='CenterNetHead', num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH), 'test_cfg': dict(
            topk=20, local_maximum_kernel=3, max_per_img=20), 'backbone': dict(BACKBONE, out_indices=(1,))},
    detr=detr(sigmoid=False),
    detr_sigmoid=detr(sigmoid=True),
    rpn=dict(type='RPN', rpn_head=RPN, test_cfg=dict(rpn=RPN_TEST), train_cfg=None),
    faster_rcnn=two_stage(),
    faster_rcnn_agnostic=two_stage(bbox_head=box_head(agnostic=True)),
    cascade_rcnn=two_stage(
        'CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 1], bbox_head=[box_head(agnostic=True), box_head()]),
    mask_rcnn=two_stage(**MASKS),
    cascade_mask_rcnn=two_stage(
        'CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 1], bbox_head=[box_head(), box_head()], **MASKS),
)  # fmt: skip


def detector(name: str, test_cfg: Optional[dict] = None, **head: object) -> nn.Module:
    """Build a detector with random statistics, finished masks, and scores on both sides of the thresholds.

    Args:
        name: key of ``DETECTORS``.
        test_cfg: what to change in the test config.
        head: what to change in the head.
    """
    cfg = deepcopy(DETECTORS[name])
    if head:
        cfg['bbox_head'].update(head)
    cfg['test_cfg'] = dict(cfg['test_cfg'], **test_cfg or {})
    with DefaultScope.overwrite_default_scope('mmdet'):
        cfg.setdefault('backbone', deepcopy(BACKBONE))
        channels = MODELS.build(deepcopy(cfg['backbone'])).out_channels
        cfg.update(
            neck=dict(type='FPN', in_channels=list(channels), out_channels=WIDTH, num_outs=len(channels)),
            data_preprocessor=dict(type='DetDataPreprocessor', mean=[128.0] * 3, std=[60.0] * 3, bgr_to_rgb=True),
        )
        torch.manual_seed(0)
        model = MODELS.build(Config(dict(model=cfg)).model)
    generator = torch.Generator().manual_seed(1)
    for part in ('bbox_head', 'rpn_head', 'roi_head'):
        for module in getattr(model, part, nn.Identity()).modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
                if module.bias is not None:
                    module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return finish_pruning(randomize_norms(model)).eval()
