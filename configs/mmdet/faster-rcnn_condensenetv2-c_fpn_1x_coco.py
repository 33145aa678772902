_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/coco_sparsification.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='CondenseNetV2',
        arch='c',
        out_indices=(1, 2, 3, 4),
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN'),
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/condensenetv2_c_backbone.pth'),
    ),
    neck=dict(in_channels=[144, 400, 1040, 2064]),
)

# With the scope of each step, so that the name serves DetInferencer too.
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
