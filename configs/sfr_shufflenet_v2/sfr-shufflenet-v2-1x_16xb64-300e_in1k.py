_base_ = [
    'mmpretrain::_base_/models/shufflenet_v2_1x.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_pil_resize.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_linearlr_bn_nowd.py',
    '../_base_/sparsification_runtime.py',
]

model = dict(backbone=dict(_delete_=True, type='SFRShuffleNetV2', widen_factor=1.0))
