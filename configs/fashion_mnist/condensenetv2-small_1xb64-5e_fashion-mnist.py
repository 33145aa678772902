_base_ = [
    '../_base_/datasets/fashion_mnist_bs64.py',
    '../_base_/schedules/fashion_mnist_bs64_5e.py',
    '../_base_/fashion_mnist_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='CondenseNetV2',
        in_channels=1,
        arch=dict(
            layers=(1, 2, 4, 6),
            growth=(8, 8, 16, 32),
            groups_1x1=4,
            groups_3x3=4,
            groups_sfr=4,
            condense_factor=4,
            sparse_factor=4,
        ),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=296, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
