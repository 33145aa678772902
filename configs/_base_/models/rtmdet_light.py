# RTMDet on CondenseNetV2-A: channels are mapped to 64 before a narrow path aggregation.
norm_cfg = dict(type='BN', momentum=0.03, eps=0.001)
act_cfg = dict(type='SiLU', inplace=True)

model = dict(
    _scope_='mmdet',
    type='RTMDet',
    data_preprocessor=dict(
        _scope_='mmdet',
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='CondenseNetV2', arch='a', out_indices=(2, 3, 4), out_norm=True),
    neck=[
        dict(
            _scope_='mmdet',
            type='ChannelMapper',
            in_channels=[96, 288, 800],
            out_channels=64,
            kernel_size=1,
            num_outs=3,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        ),
        dict(
            _scope_='mmdet',
            type='CSPNeXtPAFPN',
            in_channels=[64, 64, 64],
            out_channels=64,
            num_csp_blocks=1,
            use_depthwise=True,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        ),
    ],
    bbox_head=dict(
        _scope_='mmdet',
        type='RTMDetSepBNHead',
        num_classes=80,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(_scope_='mmdet', type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(_scope_='mmdet', type='DistancePointBBoxCoder'),
        loss_cls=dict(_scope_='mmdet', type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(_scope_='mmdet', type='GIoULoss', loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
        share_conv=False,
        use_depthwise=True,
        pred_kernel_size=1,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    train_cfg=dict(
        assigner=dict(_scope_='mmdet', type='DynamicSoftLabelAssigner', topk=13),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.65), max_per_img=100
    ),
)
