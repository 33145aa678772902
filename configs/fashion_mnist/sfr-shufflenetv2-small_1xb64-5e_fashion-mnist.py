_base_ = [
    '../_base_/datasets/fashion_mnist_bs64.py',
    '../_base_/schedules/fashion_mnist_bs64_5e.py',
    '../_base_/fashion_mnist_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SFRShuffleNetV2',
        in_channels=1,
        arch=dict(channels=(56, 112, 224), repeats=(2, 4, 2), final_width=384, sparse_factor=4),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=384, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
