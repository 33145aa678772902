_base_ = [
    '../_base_/datasets/imagenet_bs128_randaug.py',
    '../_base_/schedules/imagenet_bs1024_nesterov_350e.py',
    '../_base_/sparsification_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CondenseNetV2', arch='b'),
    neck=dict(type='SEGlobalPooling', channels=1176),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        in_channels=1176,
        mid_channels=[1024],
        act_cfg=dict(type='HSwish'),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
)

custom_hooks = [
    dict(type='StagedSparsificationHook'),
    dict(type='EMAHook', momentum=2e-4, update_buffers=True),
    dict(type='SwitchToDeployHook', before_test=False),
]
