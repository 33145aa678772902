_base_ = [
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    '../_base_/schedules/cifar_bs64_nesterov_300e.py',
    '../_base_/sparsification_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='CondenseNet', arch='86-cifar'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=100, in_channels=800, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)

train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=64)
test_dataloader = val_dataloader
