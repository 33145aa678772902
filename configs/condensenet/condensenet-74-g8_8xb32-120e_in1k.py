_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs256_nesterov_120e.py',
    '../_base_/sparsification_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CondenseNet', arch='74-g8'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2064,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)

custom_hooks = [
    dict(type='StagedSparsificationHook', group_lasso=1e-5),
    dict(type='SwitchToDeployHook', before_test=False),
]
