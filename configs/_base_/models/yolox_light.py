# YOLOX on CondenseNetV2-A: channels are mapped to 64 before a narrow path aggregation.
norm_cfg = dict(type='BN', momentum=0.03, eps=0.001)
act_cfg = dict(type='SiLU', inplace=True)

model = dict(
    _scope_='mmdet',
    type='YOLOX',
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
            type='YOLOXPAFPN',
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
        type='YOLOXHead',
        num_classes=80,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=(8, 16, 32),
        use_depthwise=True,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
        loss_cls=dict(_scope_='mmdet', type='CrossEntropyLoss', use_sigmoid=True, reduction='sum', loss_weight=1.0),
        loss_bbox=dict(_scope_='mmdet', type='IoULoss', mode='square', eps=1e-16, reduction='sum', loss_weight=5.0),
        loss_obj=dict(_scope_='mmdet', type='CrossEntropyLoss', use_sigmoid=True, reduction='sum', loss_weight=1.0),
        loss_l1=dict(_scope_='mmdet', type='L1Loss', reduction='sum', loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(_scope_='mmdet', type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65), max_per_img=100),
)
