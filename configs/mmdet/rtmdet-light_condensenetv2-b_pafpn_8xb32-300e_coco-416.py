_base_ = [
    '../_base_/models/rtmdet_light.py',
    '../_base_/datasets/coco_light_416.py',
    '../_base_/schedules/coco_light_300e.py',
]

model = dict(
    backbone=dict(arch='b'),
    neck=[
        dict(
            _scope_='mmdet',
            type='ChannelMapper',
            in_channels=[216, 600, 1176],
            out_channels=96,
            kernel_size=1,
            num_outs=3,
            norm_cfg=_base_.norm_cfg,
            act_cfg=_base_.act_cfg,
        ),
        dict(
            _scope_='mmdet',
            type='CSPNeXtPAFPN',
            in_channels=[96, 96, 96],
            out_channels=96,
            num_csp_blocks=1,
            use_depthwise=True,
            norm_cfg=_base_.norm_cfg,
            act_cfg=_base_.act_cfg,
        ),
    ],
    bbox_head=dict(in_channels=96, feat_channels=96),
)
