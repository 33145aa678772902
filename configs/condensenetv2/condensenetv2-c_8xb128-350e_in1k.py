_base_ = [
    '../_base_/datasets/imagenet_bs128_randaug.py',
    '../_base_/schedules/imagenet_bs1024_nesterov_350e.py',
    '../_base_/sparsification_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CondenseNetV2', arch='c'),
    neck=dict(type='SEGlobalPooling', channels=2064),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        in_channels=2064,
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

# The authors resize bilinearly for C.
train_pipeline = _base_.train_pipeline
train_pipeline[1].interpolation = 'bilinear'
train_pipeline[3].hparams.interpolation = 'bilinear'
test_pipeline = _base_.test_pipeline
test_pipeline[1].interpolation = 'bilinear'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
