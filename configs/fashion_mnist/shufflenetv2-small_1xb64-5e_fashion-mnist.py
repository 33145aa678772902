_base_ = [
    '../_base_/datasets/fashion_mnist_bs64.py',
    '../_base_/schedules/fashion_mnist_bs64_5e.py',
    '../_base_/fashion_mnist_runtime.py',
]

# The trunk of sfr-shufflenetv2-small; what reactivation would cost goes into the last 1x1 convolution.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SFRShuffleNetV2',
        in_channels=1,
        with_sfr=False,
        arch=dict(channels=(56, 112, 224), repeats=(2, 4, 2), final_width=424),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=424, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)

# Nothing here is sparse: the sparsification hook would refuse to start.
custom_hooks = []
